"""Delivery status notifications (RFC 3461): what a client asks for arrives at the Postfix behind us, which sends them."""

from __future__ import annotations

import contextlib
import smtplib
import time
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from cli_tools import Server, serve
from mail_tools import read_maildir, write_plugin
from partner_servers import Postfix

TEXT = b"From: a@sender.example\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nhello\r\n"


@contextlib.contextmanager
def behind(folder: Path, *options: object) -> Iterator[tuple[Server, Postfix, Path]]:
    """A server in front of Postfix, which brings notifications to a Maildir, and says yes to all else."""
    with (
        serve("--to", f"maildir:{folder}/in") as mailboxes,
        Postfix(
            folder / "postfix",
            transport_maps=f"inline:{{ {{ sender.example = smtp:[127.0.0.1]:{mailboxes.port} }} }}",
            default_transport="discard:",
        ) as postfix,
        serve("--to", f"smtp://127.0.0.1:{postfix.port}", "--one-recipient", *options) as server,
    ):
        wait_until_offered(server)
        yield server, postfix, folder / "in"


def wait_until_offered(server: Server) -> None:
    """A moment after the start it is known what the next server offers."""
    give_up = time.monotonic() + 30
    while True:
        with server.client() as client:
            client.ehlo()
            if client.has_extn("dsn"):
                return
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_what_is_asked_for_is_sent(tmp_path):
    with behind(tmp_path) as (server, postfix, inbox):
        with server.client() as client:
            client.sendmail(
                "a@sender.example",
                ["b@example.org"],
                TEXT,
                ["RET=HDRS", "ENVID=QQ+2B314159"],
                ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;first+2Bone@example.org"],
            )
        postfix.wait_for(r"status=sent", 2)
        (note,) = read_maildir(inbox)
    report = message_from_bytes(note)
    assert report.get_content_type() == "multipart/report"
    status = report.get_payload(1).as_string()
    assert "Original-Envelope-Id: QQ+314159" in status or "Original-Envelope-Id: QQ+2B314159" in status
    assert "Original-Recipient: rfc822;first+one@example.org" in status or "rfc822;first+2Bone@example.org" in status
    assert report.get_payload(2).get_content_type() == "text/rfc822-headers"  # RET=HDRS


def test_each_recipient_has_its_own(tmp_path):
    """And a plugin may change it."""
    write_plugin(tmp_path / "plugins", "10-dsn", """
        def mq_smtp_in_message(context, message):
            assert message.json["dsn"]["envid"] == "x"
            if message.recipient == "d@example.org":
                message.json["dsn"]["notify"] = "NEVER"
            if message.recipient == "e@example.org":
                message.json["dsn"]["notify"] = "SUCCESS\\r\\nRCPT TO:<evil@example.org>"
    """)  # fmt: skip
    with behind(tmp_path, "--plugins", tmp_path / "plugins") as (server, postfix, inbox):
        for name, notify in (("b", "SUCCESS"), ("c", "NEVER"), ("d", "SUCCESS"), ("e", "SUCCESS")):
            with server.client() as client:
                client.sendmail("a@sender.example", [f"{name}@example.org"], TEXT, ["ENVID=x"], [f"NOTIFY={notify}"])
        postfix.wait_for(r"status=sent", 5)
        assert "evil" not in postfix.log
        (note,) = read_maildir(inbox)
    assert "b@example.org" in message_from_bytes(note).get_payload(1).as_string()


@pytest.mark.parametrize("sink", ["null:", "maildir"])
def test_it_is_offered_by_nobody_who_cannot_keep_it(sink, tmp_path):
    with serve("--to", sink if sink == "null:" else f"maildir:{tmp_path}/in") as server, server.client() as client:
        client.ehlo()
        assert not client.has_extn("dsn")
        with pytest.raises(smtplib.SMTPSenderRefused, match="555"):
            client.sendmail("a@sender.example", ["b@example.org"], TEXT, ["RET=HDRS"])


def test_postfix_in_front_keeps_its_clients_promise(tmp_path):
    """A Postfix in front sends ORCPT and NOTIFY with each mail of a client that asked."""
    with behind(tmp_path) as (server, postfix, inbox):
        with (
            Postfix(tmp_path / "front", relayhost=f"[127.0.0.1]:{server.port}", myhostname="front.example") as front,
            smtplib.SMTP("127.0.0.1", front.port, timeout=60) as client,
        ):
            client.ehlo()
            client.sendmail("a@sender.example", ["b@example.org"], TEXT, ["ENVID=y"], ["NOTIFY=SUCCESS"])
            front.wait_until_sent(1)
        postfix.wait_for(r"status=sent", 2)
        (note,) = read_maildir(inbox)
        assert "relayed" not in message_from_bytes(note).get_payload(0).as_string()  # which the front would have said itself
