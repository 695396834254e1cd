"""Dialogues of the milter protocol in memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import mqcore
from mqcore.testing import Clock, MilterDialogues, Mq, PluginFactory, make_mail
from mqcore.testing.memory import Reply

MIME = b"Subject: hello\r\nX-Old: 1\r\nX-Old: 2\r\n\tfolded\r\n\r\nhello\r\n"


@pytest.fixture
def milter(factory: PluginFactory) -> Iterator[MilterDialogues]:
    with Clock() as clock, Mq(clock, factory) as mq, MilterDialogues(mq) as made:
        made.clock = clock  # type: ignore[attr-defined]
        yield made


def test_a_whole_dialogue(milter: MilterDialogues, factory: PluginFactory) -> None:
    seen: list[Any] = []

    def rcptto(context: Any, message: Any, address: str) -> None:
        if address.startswith("nobody"):
            message.reject(550, "5.1.1 100% nobody")

    def waits(context: Any, mail: Any) -> Any:
        seen.append((mail.connection.peer, mail.connection.tls, mail.connection.helo, mail.connection.authenticated, mail.mime))
        mail.headers.add("X-Tag", "1")
        context.start_timer(20, context.continue_, mail)
        return mqcore.HOLD

    factory(obj=SimpleNamespace(mq_smtp_in_rcptto=rcptto, mq_smtp_in_message=waits))
    client = milter.connect(peer="2001:db8::7", tls=True)
    assert client.greeting.code == 250
    assert client.ehlo("c.example").code == 250 and client.mail("a@example.org", login="me").code == 250
    assert client.data(MIME).code == 503
    assert client.rcpt("nobody@example.org") == Reply(550, "5.1.1 100% nobody")
    assert client.rcpt("b@example.org").code == 250
    assert client.data(MIME).code == 250
    (mail,) = milter.stored
    assert mail.mime == b"X-Tag: 1\r\n" + MIME
    assert (mail.sender, mail.recipients, mail.quarantine) == ("a@example.org", ["b@example.org"], None)
    assert seen == [("2001:db8::7", True, "c.example", True, MIME)] and milter.failed == []
    assert milter.clock.now == 20  # type: ignore[attr-defined]


def test_all_that_can_be_changed(milter: MilterDialogues, factory: PluginFactory) -> None:
    def changes(context: Any, mail: Any) -> None:
        mail.mime = b"Subject: hello\r\nX-New: 3\r\nX-Old: other\r\n\r\nbye\r\n"
        mail.envelope = "c@example.org"
        mail.recipients = ["d@example.org", "e@example.org"]
        mail.json["quarantine"] = "odd"

    factory(obj=SimpleNamespace(mq_smtp_in_message=changes))
    client = milter.connect()
    client.ehlo(), client.mail("a@example.org"), client.rcpt("b@example.org")
    assert client.data(make_mail(MIME)).code == 250
    (mail,) = milter.stored
    assert mail.mime == b"Subject: hello\r\nX-New: 3\r\nX-Old: other\r\n\r\nbye\r\n"
    assert (mail.sender, sorted(mail.recipients)) == ("c@example.org", ["d@example.org", "e@example.org"])
    assert mail.quarantine == "odd"


def test_refusals_failures_and_clients_that_go(milter: MilterDialogues, factory: PluginFactory) -> None:
    held: list[Any] = []

    def message(context: Any, mail: Any) -> Any:
        if b"fail" in mail.mime:
            raise ValueError("a bug")
        if b"drop" in mail.mime:
            mail.discard()
            return None
        held.append(mail)
        context.start_timer(3600, context.continue_, mail)
        return mqcore.HOLD

    factory(obj=SimpleNamespace(mq_smtp_in_message=message), name="10-judge")
    client = milter.connect()
    for subject, code in (("fail", 451), ("drop", 250)):
        client.ehlo(), client.mail(), client.rcpt()
        assert client.data(f"Subject: {subject}\r\n\r\n".encode()).code == code
    assert milter.stored == []
    client.drop()
    assert milter.failed == ["mq_smtp_in_message: ValueError: a bug"]
    with pytest.raises(mqcore.MqError, match="closed the connection"):
        client.ehlo()
