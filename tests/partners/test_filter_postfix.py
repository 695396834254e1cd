"""The way of docs/filter.md: Postfix asks us about each mail while its client waits, and takes it back from us."""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_tools import Server, serve
from free_ports import free_port
from mail_tools import counted, read_maildir, write_plugin
from partner_servers import Postfix

TEXT = "From: a@sender.example\r\nTo: b@example.org\r\nSubject: {}\r\nMessage-Id: <1@sender.example>\r\n" \
    "Date: Sun, 29 Nov 2026 08:00:00 +0000\r\n\r\n.\r\n..\r\nkäse\r\n"  # fmt: skip
PLUGIN = """
import mqcore


def mq_smtp_in_message(context, message):
    if b"won" in message.mime or message.recipient == "choosy@example.org":
        message.reject(550, "5.7.1 we do not take this kind of mail")
        return mqcore.COMPLETE
    if b"bug" in message.mime:
        raise ValueError("a bug")
    client = (message.connection.forwarded or {}).get("addr") or "unknown"
    message.mime = f"X-Filtered: yes, from {client}\\r\\n".encode() + message.mime
    return False
"""
BACK = """127.0.0.1:{port} inet n - n - - smtpd
    -o smtpd_proxy_filter=
    -o mynetworks=127.0.0.0/8
    -o smtpd_authorized_xforward_hosts=127.0.0.0/8
    -o smtpd_recipient_restrictions=permit_mynetworks,reject
    -o receive_override_options=no_unknown_recipient_checks"""


class Filtered(NamedTuple):
    postfix: Postfix
    filter: Server
    arrived: Path
    failed: Path

    def send(self, subject: str, *to: str) -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP("127.0.0.1", self.postfix.port, timeout=60) as client:
            text = TEXT.format(subject).encode()
            return client.sendmail("a@sender.example", to or ["b@example.org"], text, ["BODY=8BITMIME"])


@contextlib.contextmanager
def filtered(folder: Path) -> Iterator[Filtered]:
    write_plugin(folder / "plugins", "10-subject", PLUGIN)
    back = free_port()
    arrived, failed = folder / "arrived", folder / "failed"
    options = ("--to", f"smtp://127.0.0.1:{back}", "--plugins", folder / "plugins", "--failed", f"maildir:{failed}",
               "--lenient", "--xforward-from", "127.0.0.1")  # fmt: skip
    with serve(*options) as filter, serve("--to", f"maildir:{arrived}") as mailboxes:
        settings = {
            "smtpd_proxy_filter": f"127.0.0.1:{filter.port}",
            "relayhost": f"[127.0.0.1]:{mailboxes.port}",
        }
        with Postfix(folder / "postfix", master=BACK.format(port=back), **settings) as postfix:
            yield Filtered(postfix, filter, arrived, failed)


@pytest.fixture
def postfix(tmp_path: Path) -> Iterator[Filtered]:
    with filtered(tmp_path) as it:
        yield it


def test_what_plugins_take_is_delivered_as_they_made_it(postfix):
    assert postfix.send("hello", *(f"b{number}@example.org" for number in range(30))) == {}
    postfix.postfix.wait_until_sent(30)
    mails = read_maildir(postfix.arrived)
    assert len(mails) == 30
    for mail in mails:
        assert b"\r\nX-Filtered: yes, from 127.0.0.1\r\n" in mail
        assert mail.endswith(TEXT.format("hello").encode())
    postfix.filter.stop()
    assert counted(postfix.filter.figures) == {"continued": 30}
    assert "orig_client=localhost[127.0.0.1]" in postfix.postfix.log or "orig_client=unknown[127.0.0.1]" in postfix.postfix.log


@pytest.mark.parametrize(("subject", "code", "said"), [
    ("you have won", 550, b"5.7.1 we do not take this kind of mail"),
    ("bug", 451, b"4.3.0 this server has a problem; try again later"),
])
def test_what_plugins_refuse_is_refused_to_the_client(postfix, subject, code, said):
    with pytest.raises(smtplib.SMTPDataError) as refused:
        postfix.send(subject)
    assert (refused.value.smtp_code, refused.value.smtp_error) == (code, said)
    assert "queued as" not in postfix.postfix.log
    assert postfix.send("hello") == {}  # and goes on
    postfix.postfix.wait_until_sent(1)
    assert len(read_maildir(postfix.arrived)) == 1
    assert read_maildir(postfix.failed) == []  # the client has it still


def test_one_recipient_of_several_is_refused(postfix):
    """The client can be told one thing only; what was refused is set aside."""
    assert postfix.send("hello", "b@example.org", "choosy@example.org") == {}
    postfix.postfix.wait_until_sent(1)
    assert len(read_maildir(postfix.arrived)) == len(read_maildir(postfix.failed)) == 1


def test_while_the_filter_is_down_the_client_comes_again(postfix):
    postfix.filter.stop()
    with pytest.raises(smtplib.SMTPException) as refused:
        postfix.send("hello")
    assert "451, b'4.3.0" in str(refused.value)
    assert "queued as" not in postfix.postfix.log
