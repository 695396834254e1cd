"""Dialogues of SMTP in memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import mqcore
from mqcore.testing import Clock, Mq, PluginFactory
from mqcore.testing.smtp import Reply, SmtpDialogues


@pytest.fixture
def smtp(factory: PluginFactory) -> Iterator[SmtpDialogues]:
    with Clock() as clock, Mq(clock, factory) as mq, SmtpDialogues(mq) as made:
        made.clock = clock  # type: ignore[attr-defined]
        yield made


def test_a_whole_dialogue(smtp: SmtpDialogues, factory: PluginFactory) -> None:
    seen: list[str] = []

    def rcptto(context: Any, message: Any, address: str) -> None:
        if address.startswith("nobody"):
            message.reject(550, "5.1.1 nobody")

    def waits(context: Any, mail: Any) -> Any:
        seen.append(mail.connection.peer)
        mail.headers.add("X-Tag", "1")
        context.start_timer(20, context.continue_, mail)
        return mqcore.HOLD

    factory(obj=SimpleNamespace(mq_smtp_in_rcptto=rcptto, mq_smtp_in_message=waits))
    client = smtp.connect(peer="192.0.2.9")
    assert client.greeting.code == 220
    assert client.ehlo().code == 250 and client.mail("a@example.org").code == 250
    assert client.rcpt("nobody@example.org") == Reply(550, "5.1.1 nobody")
    assert client.rcpt("b@example.org").code == 250
    assert client.data(b"Subject: hello\r\n\r\n.dot\r\n").code == 250
    assert client.quit().code == 221 and client.is_closed
    (mail,) = smtp.stored
    assert (mail.envelope, mail.recipient, mail.headers["X-Tag"]) == ("a@example.org", "b@example.org", "1")
    assert mail.mime.endswith(b"\r\n\r\n.dot\r\n") and seen == ["192.0.2.9"] and smtp.failed == []
    assert smtp.clock.now == 20  # type: ignore[attr-defined]


def test_failures_and_clients_that_go(smtp: SmtpDialogues, factory: PluginFactory) -> None:
    closed: list[Any] = []
    held: list[Any] = []

    def message(context: Any, mail: Any) -> Any:
        if b"fail" in mail.mime:
            raise ValueError("a bug")
        held.append(mail)
        return mqcore.HOLD

    factory(obj=SimpleNamespace(mq_smtp_in_message=message, mq_smtp_in_close=lambda context, message: closed.append(message)))
    client = smtp.connect(tls=True)
    for _ in range(2):
        client.ehlo(), client.mail(), client.rcpt()
        assert client.data(b"Subject: fail\r\n\r\n").code == 451
    client.drop()
    assert smtp.failed == ["mq_smtp_in_message: ValueError: a bug"] * 2 and len(closed) == 1
    client = smtp.connect()
    client.ehlo(), client.mail(), client.rcpt()
    assert client.say("DATA").code == 354
    client.send_data(b"Subject: hold\r\n\r\n")
    assert len(held) == 1
    client.drop()
    assert isinstance(held[0].error, mqcore.Cancelled) and smtp.stored == []
    with pytest.raises(mqcore.MqError, match="closed the connection"):
        client.ehlo()


def test_logins_and_tls(smtp: SmtpDialogues, factory: PluginFactory) -> None:
    def authenticate(context: Any, message: Any, login: str, password: str) -> None:
        message.connection.authenticated = (login, password) == ("me", "secret") and message.connection.tls

    factory(obj=SimpleNamespace(mq_smtp_in_authenticate=authenticate))
    client = smtp.connect(tls=True)
    assert "AUTH" in client.ehlo().text
    assert client.login("me", "wrong").code == 535
    assert client.login("me", "secret").code == 235
