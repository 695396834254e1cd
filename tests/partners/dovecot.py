"""Dovecot with folders of its own: its LMTP server, and how to start another one."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import need
from free_ports import free_port
from smtp_tools import certificate

CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = lmtp
mail_location = maildir:{folder}/mail/%n
first_valid_uid = 1
first_valid_gid = 1
mail_plugins = quota
ssl = {ssl}
ssl_cert = <{certificate}
ssl_key = <{certificate}
plugin {{
  quota = maildir:User quota
}}
userdb {{
  driver = passwd-file
  args = username_format=%n {folder}/users
}}
passdb {{
  driver = passwd-file
  args = username_format=%n {folder}/users
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


class Dovecot:
    """Its users: alice, bob and carol; full, whose mailbox takes 200 octets; and broken, whose mailbox cannot be opened."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.unix = f"lmtp:unix:{folder}/run/lmtp"
        self.url = f"lmtp://127.0.0.1:{port}"

    def mails(self, user: str) -> list[bytes]:
        """In its mailbox, without the headers that Dovecot puts above them."""
        files = sorted((self.folder / "mail" / user / "new").glob("*"))
        return [b"Subject:" + file.read_bytes().partition(b"\nSubject:")[2] for file in files]

    def head(self, user: str) -> bytes:
        """What Dovecot put above a mail."""
        (file,) = (self.folder / "mail" / user / "new").iterdir()
        return file.read_bytes().partition(b"\nSubject:")[0]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def dovecot(*, ssl: bool = False) -> Iterator[Dovecot]:
    nobody = pwd.getpwnam("nobody")
    extras = {"full": "userdb_quota_rule=*:bytes=200", "broken": "userdb_mail=maildir:/dev/null/x"}
    users = (
        f"{name}::{nobody.pw_uid}:{nobody.pw_gid}::{{folder}}/mail/{name}::{extras.get(name, '')}\n"
        for name in ("alice", "bob", "carol", "full", "broken")
    )
    with started("lmtp", CONFIG, "".join(users), ssl="yes" if ssl else "no") as (folder, port):
        yield Dovecot(folder, port)


@contextlib.contextmanager
def started(protocol: str, config: str, users: str, **values: object) -> Iterator[tuple[Path, int]]:
    """Its folder and its port. In `config` and `users`, names in braces are replaced: those of `values`, folder, port,
    certificate, and uid and gid of nobody, who owns the mailboxes."""
    program = need("dovecot", f"dovecot-{protocol}d")
    if not Path("/usr/lib/dovecot", protocol).exists():
        pytest.skip(f"needs Dovecot's server of {protocol}: apt-get install dovecot-{protocol}d")
    if os.getuid() != 0:
        pytest.skip("needs root, as Dovecot changes to the users of its mailboxes")
    nobody = pwd.getpwnam("nobody")
    port = free_port()
    # Not pytest's folder, into which only its owner may look, and whose path is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="mqcore-dovecot-"))
    try:
        folder.chmod(0o755)
        (folder / "mail").mkdir()
        os.chown(folder / "mail", nobody.pw_uid, nobody.pw_gid)
        values |= {"folder": folder, "port": port, "certificate": certificate().file}
        values |= {"uid": nobody.pw_uid, "gid": nobody.pw_gid}
        for name, text in (("users", users), ("dovecot.conf", config)):
            (folder / name).write_text(text.format(**values))
        with subprocess.Popen([program, "-F", "-c", folder / "dovecot.conf"], stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_for(process, port)
                yield folder, port
            finally:
                process.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(process: subprocess.Popen[str], port: int) -> None:
    """Until it greets."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            if client.recv(3) == b"220":
                return
        time.sleep(0.02)
    pytest.fail("Dovecot does not start")
