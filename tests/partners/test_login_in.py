"""Clients that log in: programs that people send with, each by its own way of AUTH, under TLS."""

from __future__ import annotations

import smtplib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_tools import Server, need, need_swaks, serve
from mail_tools import counted, read_maildir, write_plugin
from smtp_tools import certificate

TEXT = b"From: alice@example.org\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nhello\r\n"
PASSWORD = "s3cret with a blank"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Takes mail from alice alone."""
    write_plugin(
        tmp_path / "plugins",
        "10-accounts",
        f"""
        def mq_smtp_in_authenticate(context, message, login, password):
            message.connection.authenticated = (login, password) == ("alice", {PASSWORD!r})
        """,
    )
    options = ("--plugins", tmp_path / "plugins", "--tls-certificate", certificate().file, "--require-login")
    with serve("--to", f"maildir:{tmp_path}/in", *options) as it:
        yield it


def send(*command: object) -> bool:
    """Whether it could."""
    text = TEXT.replace(b"\r\n", b"\n")  # if it reads the mail from there
    return subprocess.run([*map(str, command)], input=text, capture_output=True, timeout=60).returncode == 0


def msmtp(port: int, folder: Path, mechanism: str, password: str) -> bool:
    """It checks the certificate, which is for localhost."""
    (folder / "password").write_text(f"{password}\n")
    return send(
        need("msmtp"), "--host=localhost", f"--port={port}", "--tls=on", f"--tls-trust-file={certificate().authority}",
        f"--auth={mechanism}", "--user=alice", f"--passwordeval=cat {folder}/password", "-f", "alice@example.org",
        "--", "b@example.org",
    )  # fmt: skip


def curl(port: int, folder: Path, mechanism: str, password: str) -> bool:
    (folder / "mail").write_bytes(TEXT)
    return send(
        need("curl"), "-sS", f"smtp://localhost:{port}", "--ssl-reqd", "--cacert", certificate().authority, "--user",
        f"alice:{password}", "--login-options", f"AUTH={mechanism.upper()}", "--mail-from", "alice@example.org",
        "--mail-rcpt", "b@example.org", "-T", folder / "mail",
    )  # fmt: skip


def swaks(port: int, folder: Path, mechanism: str, password: str) -> bool:
    return send(
        need_swaks(tls=True), "--server", f"localhost:{port}", "--tls", "--auth", mechanism.upper(), "--auth-user", "alice",
        "--auth-password", password, "--from", "alice@example.org", "--to", "b@example.org", "-d", "-",
    )  # fmt: skip


def smtplib_(port: int, folder: Path, mechanism: str, password: str) -> bool:
    with smtplib.SMTP("localhost", port, timeout=60) as client:
        client.starttls(context=certificate().client)
        client.ehlo()
        client.user, client.password = "alice", password
        try:
            client.auth(mechanism, getattr(client, f"auth_{mechanism}"))
        except smtplib.SMTPAuthenticationError:
            return False
        return client.sendmail("alice@example.org", ["b@example.org"], TEXT) == {}


@pytest.mark.parametrize("program", [msmtp, curl, swaks, smtplib_])
@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_a_client_that_logs_in(server, program: Callable[..., bool], mechanism, tmp_path):
    assert not program(server.port, tmp_path, mechanism, "wrong")
    assert read_maildir(tmp_path / "in") == []
    assert program(server.port, tmp_path, mechanism, PASSWORD)
    server.stop()
    assert len(read_maildir(tmp_path / "in")) == 1 and counted(server.figures) == {"continued": 1}
