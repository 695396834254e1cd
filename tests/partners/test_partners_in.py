"""Mail from programs that people send with arrives: once for each recipient, byte for byte, and the program knows."""

from __future__ import annotations

import pytest
from cli_tools import serve
from mail_tools import counted, read_maildir
from senders import QUEUES, SENDERS
from smtp_tools import certificate

FROM = "a@sender.example"
HEAD = b"From: a@sender.example\r\nTo: b@recipient.example\r\nSubject: hello\r\nMessage-Id: <1@sender.example>\r\n" \
    b"Date: Sun, 29 Nov 2026 08:00:00 +0000\r\n\r\n"  # fmt: skip
BODIES = {
    "odd": ".\r\n..\r\n.leading\r\nkäse\r\n".encode(),
    "big": (b"x" * 70 + b"\r\n") * 30_000,
}


@pytest.fixture(params=SENDERS)
def sender(request):
    return request.param


@pytest.mark.parametrize("body", ["odd", pytest.param("big", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipients", [1, 3])
def test_delivered_once(tmp_path, sender, recipients, body):
    """Exim's mails stayed in its queue for ever; msmtp and curl could not send to three."""
    to = [f"b{number}@recipient.example" for number in range(recipients)]
    options = ("--tls-certificate", certificate().file) if sender == "exim-starttls" else ()
    text = HEAD + BODIES[body]
    given = text if sender not in ("msmtp", "dma", "exim", "exim-starttls", "swaks") else text.replace(b"\r\n", b"\n")
    with serve("--to", f"maildir:{tmp_path}/in", *options) as server:
        SENDERS[sender](tmp_path, server.port, FROM, to, given)
    mails = read_maildir(tmp_path / "in")
    assert len(mails) == recipients and counted(server.figures) == {"continued": recipients}
    for mail in mails:
        head, _, rest = mail.replace(b"\r\n", b"\n").partition(b"\n\n")
        assert rest.rstrip(b"\n") == BODIES[body].replace(b"\r\n", b"\n").rstrip(b"\n")  # swaks adds an empty line
        assert head.endswith(HEAD[:-4].replace(b"\r\n", b"\n")) or sender in QUEUES
