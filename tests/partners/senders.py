"""Programs that people send mail with, none of them ours: each sends one mail to the server under test and says how it went.

A sender is called with a folder of its own, the server's port, the sender's address, the recipients and the mail. It returns
when the mail is delivered or the program gave up for now; its queue, if it has one, must be empty then.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import aiosmtplib
import pytest
from cli_tools import need, need_swaks
from free_ports import free_port
from mail_tools import ROOT

Sender = Callable[[Path, int, str, Sequence[str], bytes], None]

UNPACKED = ROOT / "build" / "partners"


def run(command: Sequence[object], given: bytes = b"", **environment: str) -> str:
    """What the command says; it must end with exit code 0."""
    result = subprocess.run(
        [*map(str, command)], input=given, capture_output=True, timeout=120, env=os.environ | environment
    )
    said = (result.stdout + result.stderr).decode(errors="replace")
    assert result.returncode == 0, said
    return said


def unpacked(program: str) -> Path:
    """A program of a package that cannot be installed beside Postfix."""
    path = UNPACKED / program
    if os.geteuid() != 0:
        pytest.skip("mail servers are started by root")
    if not path.exists():
        pytest.skip(f"needs {path.name}: scripts/partners")
    return path


# Servers, which have a queue


def exim(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes, *, tls: bool = False) -> None:
    """It sends the final dot and QUIT in one go, and shuts its side of a plain connection before it has the replies."""
    program = unpacked("usr/sbin/exim4")
    home = folder / "exim"
    (home / "spool").mkdir(parents=True)
    (home / "log").mkdir()
    configuration = home / "configuration"
    configuration.write_text(
        f"""
exim_path = {program}
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = {home}/spool
log_file_path = {home}/log/%slog
primary_hostname = exim.example
never_users =
keep_environment =
untrusted_set_sender = *
no_local_from_check
message_size_limit = 100M
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  transport = gateway
  self = send
begin transports
gateway:
  driver = smtp
  port = {port}
  {"hosts_require_tls" if tls else "hosts_avoid_tls"} = *
begin retry
* * F,1h,1h
"""
    )
    for path in (home, home / "spool", home / "log"):
        shutil.chown(path, "Debian-exim", "Debian-exim")
    run([program, "-C", configuration, "-odi", "-oi", "-f", sender, *recipients], mail)
    log = (home / "log" / "mainlog").read_text()
    assert "Completed" in log and " == " not in log and " ** " not in log, log


def exim_tls(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    exim(folder, port, sender, recipients, mail, tls=True)


def opensmtpd(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    """Its queue and its socket are where it was built to look for them, so it gets a view of the file system of its own."""
    program = unpacked("usr/sbin/smtpd")
    home = folder / "opensmtpd"
    home.mkdir()
    listener = free_port()
    (home / "smtpd.conf").write_text(
        f"listen on 127.0.0.1 port {listener}\n"
        f"action out relay host smtp://127.0.0.1:{port}\n"
        "match from any for any action out\n"
    )
    script = f"""
        set -e
        mount -t tmpfs tmpfs /var/spool
        mount -t tmpfs tmpfs /var/run
        mkdir -p /var/spool/smtpd /var/run/opensmtpd
        chmod 711 /var/spool/smtpd
        mkdir -m 700 /var/spool/smtpd/queue /var/spool/smtpd/purge /var/spool/smtpd/corrupt /var/spool/smtpd/incoming
        chown opensmtpq /var/spool/smtpd/queue /var/spool/smtpd/purge /var/spool/smtpd/corrupt /var/spool/smtpd/incoming
        mkdir -p /var/lib/opensmtpd/empty
        exec {program} -d -v -f {home}/smtpd.conf
    """
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [need("unshare", "util-linux"), "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_port(listener, server, home / "log")
        with smtplib.SMTP("127.0.0.1", listener, timeout=60) as client:
            client.sendmail(sender, recipients, mail, ["BODY=8BITMIME"])
        give_up = time.monotonic() + 60
        while (home / "log").read_text().count('delivery evpid=') < len(recipients):
            assert time.monotonic() < give_up, (home / "log").read_text()
            time.sleep(0.05)
        said = (home / "log").read_text()
        assert said.count('result="Ok"') == len(recipients), said
    finally:
        server.kill()
        server.wait(30)


def postfix(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    from partner_servers import Postfix

    with Postfix(folder / "postfix", relayhost=f"[127.0.0.1]:{port}") as server:
        with smtplib.SMTP("127.0.0.1", server.port, timeout=60) as client:
            client.sendmail(sender, recipients, mail, ["BODY=8BITMIME"])
        server.wait_until_sent(len(recipients))


def dma(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    """Small, for machines that only send: no pipelining, a process for each recipient."""
    program = unpacked("usr/sbin/dma")
    home = folder / "dma"
    home.mkdir()
    (home / "dma.conf").write_text(f"SMARTHOST 127.0.0.1\nPORT {port}\nMAILNAME dma.example\n")
    (home / "mail").write_bytes(mail)
    script = f"""
        set -e
        mount -t tmpfs tmpfs /var/spool
        mkdir -m 2775 /var/spool/dma
        chgrp mail /var/spool/dma
        mount --bind {home} /etc/dma
        {program} -D -i -f {sender} {" ".join(recipients)} < {home}/mail
        sleep 0.2
        ls /var/spool/dma | grep -c '^Q' || true
    """
    said = run([need("unshare", "util-linux"), "--mount", "sh", "-c", script])
    assert said.split()[-1] == "0", said


# Clients


def msmtp(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    program = need("msmtp")
    run([program, "--host=127.0.0.1", f"--port={port}", "-f", sender, "--", *recipients], mail, HOME=str(folder))


def curl(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    (folder / "curl").write_bytes(mail)
    to = [word for recipient in recipients for word in ("--mail-rcpt", recipient)]
    run([need("curl"), "-sS", f"smtp://127.0.0.1:{port}", "--mail-from", sender, *to, "-T", folder / "curl"])


def swaks(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    run([need_swaks(), "--server", f"127.0.0.1:{port}", "-f", sender, "-t", ",".join(recipients), "-d", "-"], mail)


def nodemailer(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    node = need("node", "nodejs node-nodemailer")
    script = """
        const [port, from, ...to] = process.argv.slice(1);
        const raw = require("fs").readFileSync(0);
        require("nodemailer").createTransport({host: "127.0.0.1", port: +port, secure: false, ignoreTLS: true})
            .sendMail({envelope: {from, to}, raw}, (error, info) => {
                if (error || info.rejected.length) { console.log(error, info); process.exit(1); }
            });
    """
    if not Path("/usr/share/nodejs/nodemailer").exists():
        pytest.skip("needs nodemailer: apt-get install node-nodemailer")
    run([node, "-e", script, port, sender, *recipients], mail, NODE_PATH="/usr/share/nodejs")


def smtplib_(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        assert client.sendmail(sender, recipients, mail) == {}


def aiosmtplib_(folder: Path, port: int, sender: str, recipients: Sequence[str], mail: bytes) -> None:
    refused, _ = asyncio.run(
        aiosmtplib.send(mail, sender=sender, recipients=recipients, hostname="127.0.0.1", port=port, start_tls=False)
    )
    assert refused == {}


SENDERS: dict[str, Sender] = {
    "exim": exim,
    "exim-starttls": exim_tls,
    "postfix": postfix,
    "opensmtpd": opensmtpd,
    "dma": dma,
    "msmtp": msmtp,
    "curl": curl,
    "swaks": swaks,
    "nodemailer": nodemailer,
    "smtplib": smtplib_,
    "aiosmtplib": aiosmtplib_,
}
QUEUES = ("exim", "exim-starttls", "postfix", "opensmtpd", "dma")
"""Those that add lines of their own above the mail."""


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()
            time.sleep(0.05)
