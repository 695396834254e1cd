"""`mqcore run --from lmtp:...`, and Unix sockets."""

from __future__ import annotations

import signal
import smtplib
import socket
import subprocess
from pathlib import Path

import pytest
from cli_tools import TEXT, need_swaks, serve
from mail_tools import counted, read_maildir, run, untraced, write_plugin
from smtp_tools import codes

LHLO = b"LHLO client.example\r\n"
FROM = b"MAIL FROM:<a@example.org>\r\n"


def refuses(folder: Path) -> Path:
    """A plugin that refuses one for good, and another for now."""
    write_plugin(
        folder,
        "10-refuse",
        """
        def mq_smtp_in_message(context, message):
            if message.recipient == "no@example.org":
                message.reject(550, "5.1.1 no such user")
            if message.recipient == "later@example.org":
                message.reject(450, "4.2.0 later")
        """,
    )
    return folder


def talk(client: socket.socket, *names: str) -> list[str]:
    """A conversation in one go, and the codes of its replies."""
    recipients = b"".join(b"RCPT TO:<%b@example.org>\r\n" % name.encode() for name in names)
    client.sendall(LHLO + FROM + recipients + b"DATA\r\n" + TEXT[:-4] + b".\r\nQUIT\r\n")
    with client.makefile("rb") as replies:
        return codes(line.decode() for line in replies if line[3:4] == b" ")


@pytest.mark.parametrize("kind", ["//127.0.0.1:0", "unix"])
def test_mixed_verdicts_need_no_place_for_failed_mails(kind, tmp_path):
    where = f"unix:{tmp_path}/lmtp" if kind == "unix" else kind
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", refuses(tmp_path / "plugins"))
    with serve(*options, source=f"lmtp:{where}") as server:
        address = f"{tmp_path}/lmtp" if kind == "unix" else ("127.0.0.1", server.port)
        with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as client:
            client.settimeout(60)
            client.connect(address)
            replies = talk(client, "b", "no", "later", "c", "b")
    assert replies[-7:] == ["354", "250 2.6.0", "550 5.1.1", "450 4.2.0", "250 2.6.0", "250 2.6.0", "221 2.0.0"]
    assert len(read_maildir(tmp_path / "in")) == 2
    assert counted(server.figures) == {"continued": 2, "rejected": 2}
    assert not (tmp_path / "lmtp").exists()


def test_a_server_as_the_sink_needs_no_place_for_failed_mails_either(tmp_path):
    """From a server by LMTP to a server by LMTP, over sockets, each verdict passed on."""
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", refuses(tmp_path / "plugins"))
    with (
        serve(*options, source=f"lmtp:unix:{tmp_path}/inner") as inner,
        serve("--to", f"lmtp:unix:{tmp_path}/inner", source=f"lmtp:unix:{tmp_path}/outer") as outer,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(60)
        client.connect(f"{tmp_path}/outer")
        assert talk(client, "b", "no", "later", "c")[-5:-1] == ["250 2.6.0", "550 5.1.1", "450 4.2.0", "250 2.6.0"]
        outer.stop()
        inner.stop()
    assert len(read_maildir(tmp_path / "in")) == 2
    assert counted(outer.figures) == counted(inner.figures) == {"continued": 2, "rejected": 2}


def test_swaks(tmp_path):
    swaks = need_swaks()
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", refuses(tmp_path / "plugins"))
    with serve(*options, source=f"lmtp:unix:{tmp_path}/lmtp"):
        command = [swaks, "--protocol", "LMTP", "--socket", f"{tmp_path}/lmtp", "--from", "a@example.org", "--helo", "x"]
        result = subprocess.run([*command, "--to", "b@example.org,no@example.org"], capture_output=True, text=True, timeout=60)
    assert "250 2.6.0 stored as" in result.stdout and "550 5.1.1 no such user" in result.stdout, result
    assert len(read_maildir(tmp_path / "in")) == 1


def test_smtplib_over_a_unix_socket(tmp_path):
    with (
        serve("--to", f"maildir:{tmp_path}/in", source=f"lmtp:unix:{tmp_path}/lmtp") as server,
        smtplib.LMTP(f"{tmp_path}/lmtp", local_hostname="client.example") as client,
    ):
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert server.url == f"lmtp:unix:{tmp_path}/lmtp"
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT]


def test_after_a_kill_it_listens_again(tmp_path):
    url = f"smtp:unix:{tmp_path}/smtp"
    with serve("--to", "null:", source=url) as server:
        server.process.kill()
        server.process.wait(60)
        assert (tmp_path / "smtp").is_socket()
        with serve("--to", "null:", source=url):
            again = run("run", "--from", url, "--to", "null:")
            assert (again.returncode, again.stderr) == (
                4,
                f"mqcore: cannot listen on {url}: Address already in use; another program has this path\n",
            )
    assert not (tmp_path / "smtp").exists()


def test_it_is_removed_after_ctrl_c(tmp_path):
    with serve("--to", "null:", source=f"lmtp:unix:{tmp_path}/lmtp") as server, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(f"{tmp_path}/lmtp")
        assert client.recv(4) == b"220 "
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
    assert not (tmp_path / "lmtp").exists()
