"""What programs that people use make of the trace: it is in the mailbox, above what was sent."""

from __future__ import annotations

import contextlib
import re
import smtplib
import tempfile
from collections.abc import Iterator
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from cli_tools import serve
from dovecot import dovecot
from partner_servers import Postfix
from senders import SENDERS
from smtp_tools import certificate

TEXT = b"From: a@sender.example\nTo: alice@example.org\nSubject: hello\n\nhello\n"
LINE = re.compile(
    r"from (\S+) \(\[127\.0\.0\.1\]\)\s+by mx\.example\.net \(mqcore [0-9a-f]{16}\)\s+with (\w+) id [0-9a-f]{32}\s+"
    r"for <alice@example\.org>;\s+(.*)"
)


@pytest.mark.parametrize(
    ("program", "protocol"), [("swaks", "ESMTP"), ("msmtp", "ESMTP"), ("exim", "ESMTP"), ("exim-starttls", "ESMTPS")]
)
def test_through_us_to_dovecot(program, protocol, tmp_path):
    options = ("--tls-certificate", certificate().file) if program == "exim-starttls" else ()
    with (
        dovecot() as server,
        serve("--to", server.unix, "--hostname", "mx.example.net", "--one-recipient", *options) as it,
    ):
        SENDERS[program](tmp_path, it.port, "a@sender.example", ["alice@example.org"], TEXT)
        (file,) = (server.folder / "mail" / "alice" / "new").iterdir()
        mail = message_from_bytes(file.read_bytes())
    ours = [match for line in mail.get_all("Received") if (match := LINE.fullmatch(line))]
    assert len(ours) == 1 and ours[0][2] == protocol
    assert parsedate_to_datetime(ours[0][3]).tzinfo is not None
    assert mail.defects == [] and mail.get_payload().strip() == "hello"


@contextlib.contextmanager
def passable() -> Iterator[Path]:
    """A folder where Postfix's user may go."""
    with tempfile.TemporaryDirectory(prefix="mqcore-postfix-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_through_us_and_postfix():
    """Postfix hands it to our LMTP server, and takes it from our SMTP server: both lines are there, the newer one above."""
    with (
        passable() as folder,
        serve("--to", f"maildir:{folder}/in", "--hostname", "last.example.net", source="lmtp://127.0.0.1:0") as last,
        Postfix(folder / "postfix", default_transport=f"lmtp:inet:127.0.0.1:{last.port}") as postfix,
        serve("--to", f"smtp://127.0.0.1:{postfix.port}", "--hostname", "mx.example.net", "--one-recipient") as first,
    ):
        with smtplib.SMTP("127.0.0.1", first.port, local_hostname="client.example", timeout=60) as client:
            client.sendmail("a@sender.example", ["alice@example.org"], TEXT.replace(b"\n", b"\r\n"))
        postfix.wait_until_sent(1)
        (file,) = (folder / "in" / "new").iterdir()
        mail = message_from_bytes(file.read_bytes())
    newest, middle, oldest = mail.get_all("Received")
    assert "by last.example.net (mqcore " in newest and "with LMTP id" in newest and "(Postfix)" in middle
    assert LINE.fullmatch(oldest)
    assert (mail["Return-Path"], mail["Delivered-To"]) == ("<a@sender.example>", "alice@example.org")
