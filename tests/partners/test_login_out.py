"""Delivering by a submission server that wants a login: Dovecot's, with Postfix behind it."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import serve
from dovecot import started
from mail_tools import COMMAND, counted, move, read_maildir, run, write_mbox, write_plugin
from smtp_tools import certificate

CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = submission
mail_location = maildir:{folder}/mail/%n
first_valid_uid = 1
first_valid_gid = 1
ssl = {ssl}
ssl_cert = <{certificate}
ssl_key = <{certificate}
auth_mechanisms = {mechanisms}
auth_debug = yes
# A wrong password is answered at once, also the next time.
auth_failure_delay = 0
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
disable_plaintext_auth = yes
hostname = submission.example
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
submission_relay_trusted = no
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/mail/%n
}}
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
service submission-login {{
  inet_listener submission {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


@contextlib.contextmanager
def submission(relay: int, *, mechanisms: str = "plain login", ssl: str = "yes") -> Iterator[str]:
    """The URL of a server that takes mail from alice, whose password is `s3cret`, and gives it to `relay`."""
    values = {"mechanisms": mechanisms, "ssl": ssl, "relay": relay}
    with started("submission", CONFIG, "alice:{{PLAIN}}s3cret\n", **values) as (_, port):
        yield f"smtp://localhost:{port}"


@pytest.fixture
def to(tmp_path: Path) -> tuple[object, ...]:
    write_plugin(tmp_path / "plugins", "10-to", "def mq_smtp_in_message(context, message): message.recipient = 'b@example.org'")
    return ("--plugins", tmp_path / "plugins")


def credentials(folder: Path, *lines: str) -> Path:
    path = folder / "credentials"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate().authority))


@pytest.mark.parametrize("mechanisms", ["plain", "login"])
@pytest.mark.parametrize("where", ["file", "env"])
def test_delivered_by_a_submission_server(mechanisms, where, monkeypatch, to, tmp_path):
    mbox = write_mbox(tmp_path / "mbox", 30)
    how = ("--credentials", credentials(tmp_path, "alice", "s3cret")) if where == "file" else ("--credentials-env",)
    if where == "env":
        monkeypatch.setenv("MQCORE_LOGIN", "alice")
        monkeypatch.setenv("MQCORE_PASSWORD", "s3cret")
    with serve("--to", f"maildir:{tmp_path}/in") as relay, submission(relay.port, mechanisms=mechanisms) as url:
        figures = move(f"mbox:{mbox}", url, *how, *to)
    assert counted(figures) == {"continued": 30}
    assert len(read_maildir(tmp_path / "in")) == 30


def test_a_wrong_password_keeps_the_mails(to, tmp_path):
    """They were not sent, and nobody is told that they cannot be."""
    mbox = write_mbox(tmp_path / "mbox", 3)
    options = ("--credentials", credentials(tmp_path, "alice", "wrong"), "--failed", f"maildir:{tmp_path}/failed", *to)
    with serve("--to", f"maildir:{tmp_path}/in") as relay, submission(relay.port) as url:
        result = run("run", "--from", f"mbox:{mbox}", "--to", url, *options)
        assert result.returncode == 4
        assert re.search(r"cannot reach smtp://\S+: it does not take the credentials of 'alice': 535 ", result.stderr)
        assert "wrong" not in result.stderr.replace("wrong password", "")
        assert read_maildir(tmp_path / "in") == read_maildir(tmp_path / "failed") == []
        credentials(tmp_path, "alice", "s3cret")
        assert counted(move(f"mbox:{mbox}", url, *options)) == {"continued": 3}
    assert len(read_maildir(tmp_path / "in")) == 3


def test_a_client_is_told_to_come_again(tmp_path):
    with (
        serve("--to", f"maildir:{tmp_path}/in") as relay,
        submission(relay.port) as url,
        serve("--to", url, "--one-recipient", "--credentials", credentials(tmp_path, "alice", "wrong")) as server,
        server.client() as client,
    ):
        client.ehlo()
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        code, said = client.data("Subject: x\r\n\r\nx\r\n")
        assert code == 451 and b"the credentials of 'alice': 535" in said


@pytest.mark.parametrize("level", [(), ("--tls-out", "require")])
def test_nothing_is_said_in_the_clear(level, to, tmp_path):
    """A server without TLS, which would like to hear the password."""
    mbox = write_mbox(tmp_path / "mbox", 1)
    said = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"smtp://localhost:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [*COMMAND, "run", "--from", f"mbox:{mbox}", "--to", url, "--credentials",
             credentials(tmp_path, "alice", "s3cret"), *map(str, to), *level],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        client, _ = listener.accept()
        with client:
            client.settimeout(30)
            client.sendall(b"220 x\r\n")
            said.append(client.recv(1000))
            client.sendall(b"250-x\r\n250 AUTH PLAIN LOGIN\r\n")
            said.append(client.recv(1000))
        process.terminate()
        process.communicate(timeout=60)
    assert b"AUTH" not in b"".join(said) and said[0].startswith(b"EHLO ")
