"""`milter:` as a source: plugins behind a mail server that asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from milter_tools import Mta
from smtp_tools import Holds, ListSink, plugin, run
from waiting import until

import mqcore
from mqcore.mail import FailedSink, Gateway, Mail
from mqcore.mail.milter.server import MilterServer
from mqcore.mail.milter.sink import MilterSink
from mqcore.mail.milter.source import MilterSource
from mqcore.milter.packets import packet, parameters

MIME = b"Subject: hello\r\nX-Old: 1\r\n\r\nbody\r\n"


class Asked:
    """A gateway that mail servers ask."""

    def __init__(self, gateway: Gateway, failed: ListSink) -> None:
        self.gateway, self.failed = gateway, failed
        self.counts = gateway.report.counts

    @property
    def server(self) -> MilterServer:
        assert isinstance(self.gateway.source, MilterSource)
        assert self.gateway.source._server is not None
        return self.gateway.source._server


@contextlib.asynccontextmanager
async def asked(*plugins: Any, sink: Any = None, failed: bool = False, where: str = "//127.0.0.1:0") -> AsyncIterator[Any]:
    """A mail server, connected, and the gateway that it asks."""
    loaded = mqcore.Plugins()
    for number, one in enumerate(plugins):
        loaded.add(f"{number}0-test", one)
    aside = ListSink()
    with mqcore.Dispatcher(loaded) as dispatcher, contextlib.closing(MilterSource(where)) as source:
        gateway = Gateway(dispatcher, source, sink or MilterSink(source.url), FailedSink(aside, source.url) if failed else None)
        running = asyncio.create_task(gateway.run())
        await asyncio.sleep(0)
        try:
            mta = await Mta.at(source.port or where.removeprefix("unix:"))
            yield mta, Asked(gateway, aside)
            mta.leave()
        finally:
            gateway.stop()
            await running
    counts = gateway.report.counts
    stored = counts.continued + counts.completed
    assert counts.read == stored + counts.failed + counts.rejected + counts.discarded + counts.unfinished
    assert gateway.in_flight == gateway.bytes == 0


@run
async def test_plugins_see_the_client_and_the_mail() -> None:
    seen: list[Any] = []

    def in_message(context: Any, mail: Mail) -> None:
        connection = mail.connection
        seen.append((connection.peer, connection.helo, connection.macros["i"], mail.envelope, mail.recipient, mail.mime))
        seen.append((mail.json["queue_id"], connection.authenticated, connection.tls))

    async with asked(plugin(message=in_message)) as (mta, at):
        await mta.connect()
        assert await mta.send_mail(MIME, "a@example.org", "b@example.org", "c@example.org") == "continue"
        assert mta.said == []
        assert at.counts.continued == 2
    assert seen[:2] == [
        ("192.0.2.7", "client.example", "QUEUE", "a@example.org", "b@example.org", MIME),
        ("QUEUE", False, False),
    ]
    assert seen[2][4] == "c@example.org"


@run
async def test_the_hooks_come_in_their_order_and_close_comes_once() -> None:
    seen: list[str] = []
    stages = ("connect", "mailfrom", "rcptto", "data", "message", "close")

    def note(stage: str) -> Any:
        return lambda context, message, *arguments: seen.append(stage)

    async with asked(plugin(**{stage: note(stage) for stage in stages})) as (mta, _at):
        await mta.connect()
        await mta.send_mail(MIME)
        await mta.send_mail(MIME)
        mta.send(packet(b"K"))
        await mta.connect("192.0.2.8")
    assert seen == ["connect", *["mailfrom", "rcptto", "data", "message"] * 2, "close", "connect", "close"]


@run
async def test_without_plugins_nothing_is_asked_for() -> None:
    async with asked() as (mta, _at):
        assert mta.steps & 0xF270 == 0xF270
        await mta.connect()
        assert await mta.send_mail(MIME) == "continue"


@pytest.mark.parametrize("stage", ["connect", "mailfrom", "rcptto", "data", "message"])
@run
async def test_a_refusal_at_each_stage(stage: str) -> None:
    def refuse(context: Any, message: Mail, *arguments: Any) -> None:
        message.reject(550, "5.7.1 100% no")

    async with asked(plugin(**{stage: refuse})) as (mta, at):
        reply = await mta.connect()
        if stage != "connect":
            reply = await mta.send_mail(MIME)
        assert reply == "550 5.7.1 100%% no"
        assert sum(at.gateway.refusals.counts.values()) == 1


@pytest.mark.parametrize(("stage", "code"), [("connect", 421), ("mailfrom", 451), ("message", 451)])
@run
async def test_a_plugin_that_fails_is_a_refusal_for_now(stage: str, code: int) -> None:
    def fail(context: Any, message: Mail, *arguments: Any) -> None:
        raise ValueError("no")

    async with asked(plugin(**{stage: fail})) as (mta, _at):
        reply = await mta.connect()
        if stage != "connect":
            reply = await mta.send_mail(MIME)
        assert reply.startswith(f"{code} 4.3.0 ")


@run
async def test_what_plugins_change_is_said() -> None:
    def change(context: Any, mail: Mail) -> None:
        mail.headers.add("X-New", "1")
        mail.envelope = "new@example.org"
        mail.recipients = ["x@example.org", "y@example.org"]

    async with asked(plugin(message=change)) as (mta, _at):
        await mta.connect()
        assert await mta.send_mail(MIME) == "continue"
        assert mta.said == [
            (b"e", b"<new@example.org>\0"),
            (b"-", b"<b@example.org>\0"),
            (b"+", b"<x@example.org>\0"),
            (b"+", b"<y@example.org>\0"),
            (b"i", b"\0\0\0\1X-New\0 1\0"),
        ]


@run
async def test_a_recipient_that_is_refused_at_the_end_is_taken_away_where_failed_mails_have_a_place() -> None:
    def refuse(context: Any, mail: Mail) -> None:
        if mail.recipient == "b@example.org":
            mail.reject(550, "5.1.1 no")

    async with asked(plugin(message=refuse), failed=True) as (mta, at):
        await mta.connect()
        assert await mta.send_mail(MIME, "a@example.org", "b@example.org", "c@example.org") == "continue"
        assert mta.said == [(b"-", b"<b@example.org>\0")]
        assert [mail.recipient for mail in at.failed.mails] == ["b@example.org"]
    async with asked(plugin(message=refuse)) as (mta, at):
        await mta.connect()
        reply = await mta.send_mail(MIME, "a@example.org", "b@example.org", "c@example.org")
        assert reply == "550 5.1.1 no (refused for 1 of 2 recipients, so nobody gets it)"


@run
async def test_what_differs_by_recipient_cannot_be_said() -> None:
    def change(context: Any, mail: Mail) -> None:
        mail.headers.add("X-To", mail.recipient or "")

    async with asked(plugin(message=change)) as (mta, at):
        await mta.connect()
        reply = await mta.send_mail(MIME, "a@example.org", "b@example.org", "c@example.org")
        assert reply.startswith("451 4.3.0 ")
        assert at.gateway.sink.unsayable == 1
        assert await mta.send_mail(MIME) == "continue"


@run
async def test_a_recipient_that_a_client_says_twice_is_one_for_its_server() -> None:
    seen: list[Mail] = []

    def change(context: Any, mail: Mail) -> None:
        seen.append(mail)
        if len(seen) % 2:
            mail.recipient = "c@example.org"

    async with asked(plugin(message=change)) as (mta, _at):
        await mta.connect()
        assert await mta.send_mail(MIME, "a@example.org", "b@example.org", "b@example.org") == "continue"
        assert mta.said == [(b"+", b"<c@example.org>\0")]


@run
async def test_a_header_that_is_none_cannot_be_said() -> None:
    def change(context: Any, mail: Mail) -> None:
        mail.mime = b"nonsense\r\n" + mail.mime

    async with asked(plugin(message=change)) as (mta, _at):
        await mta.connect()
        assert (await mta.send_mail(MIME)).startswith("451 4.3.0 ")


@pytest.mark.parametrize("stage", ["connect", "mailfrom", "rcptto", "data", "message"])
@run
async def test_what_is_discarded_is_taken_and_dropped(stage: str) -> None:
    def discard(context: Any, message: Mail, *arguments: Any) -> None:
        message.discard()

    async with asked(plugin(**{stage: discard})) as (mta, at):
        await mta.connect()
        assert await mta.send_mail(MIME) == "discard"
        assert at.counts.discarded == 1


@run
async def test_with_a_sink_mail_is_stored_and_the_server_drops_it() -> None:
    sink = ListSink()
    async with asked(sink=sink) as (mta, _at):
        await mta.connect()
        assert await mta.send_mail(MIME, "a@example.org", "b@example.org", "c@example.org") == "discard"
    assert [(mail.recipient, mail.mime) for mail in sink.mails] == [("b@example.org", MIME), ("c@example.org", MIME)]


@run
async def test_a_server_is_told_that_it_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqcore.mail.milter.timeouts.PROGRESS", 0.02)

    async def wait(context: Any, mail: Mail) -> None:
        await until(lambda: (b"p", b"") in mta.said)

    async with asked(plugin(message=wait)) as (mta, _at):
        await mta.connect()
        assert await mta.send_mail(MIME) == "continue"
        assert set(mta.said) == {(b"p", b"")}


@pytest.mark.parametrize(("stage", "code"), [("connect", 421), ("mailfrom", 451), ("rcptto", 451)])
@run
async def test_a_server_that_cannot_be_told_to_wait_has_its_answer_in_time(
    stage: str, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sendmail, until all of a mail has come."""
    monkeypatch.setattr("mqcore.mail.milter.timeouts.UNTOLD", 0.1)
    holds = Holds(stage)
    async with asked(holds) as (_, at):
        mta = await Mta.at(at.gateway.source.port, "8.17.1")
        reply = await mta.connect()
        if stage != "connect":
            reply = await mta.send_mail(MIME)
        assert reply.startswith(f"{code} 4.3.0 ")
        assert mta.said == [] and at.gateway.dispatcher.counts()["held"] == 0
        assert f"a plugin held the message at {stage} for 0.1 s" in caplog.text
        mta.leave()


@pytest.mark.parametrize("stage", ["connect", "mailfrom", "rcptto", "data", "message"])
@pytest.mark.parametrize("how", ["abort", "quit", "reset"])
@run
async def test_a_server_that_goes_takes_back_what_plugins_hold(stage: str, how: str) -> None:
    held = asyncio.Event()
    kept: list[Any] = []
    closed: list[Any] = []

    def hold(context: Any, message: Mail, *arguments: Any) -> Any:
        held.set()
        kept.append(message)
        return mqcore.HOLD

    holder = plugin(**{stage: hold, "close": lambda context, message: closed.append(message)})
    async with asked(holder) as (mta, at):
        going = asyncio.create_task(talk(mta))
        await asyncio.wait_for(held.wait(), 60)
        if how == "reset":
            mta.reset()
        else:
            mta.send((packet(b"A") if how == "abort" else b"") + packet(b"Q"))
        await until(lambda: closed)
        going.cancel()
        await asyncio.wait([going])
        assert at.gateway.dispatcher.counts()["held"] == 0


async def talk(mta: Mta) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await mta.connect()
        await mta.send_mail(MIME)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", packet(b"?"), packet(b"E"), packet(b"M", parameters(b"<a>"))])
@run
async def test_garbage_closes_its_connection_only(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with asked(plugin(message=lambda context, mail: None)) as (mta, at):
        other = await Mta.at(at.gateway.source.port)
        other.send(garbage)
        assert await other.is_closed()
        other.leave()
        assert "milter protocol" in caplog.text
        await mta.connect()
        assert await mta.send_mail(MIME) == "continue"


@run
async def test_many_sessions_at_once() -> None:
    async def wait(context: Any, mail: Mail) -> None:
        await asyncio.sleep(0.01)
        mail.headers.add("X-New", "1")

    async with asked(plugin(message=wait)) as (_mta, at):

        async def ask() -> None:
            one = await Mta.at(at.gateway.source.port)
            await one.connect()
            for _ in range(5):
                assert await one.send_mail(MIME) == "continue"
                assert len(one.said) == 1
            one.leave()

        await asyncio.gather(*(ask() for _ in range(50)))
        assert at.counts.continued == 250


@run
async def test_stopping_lets_what_is_open_end() -> None:
    held: list[Any] = []

    def hold(context: Any, mail: Mail) -> Any:
        held.append((context, mail))
        return mqcore.HOLD

    async with asked(plugin(message=hold)) as (mta, at):
        idle = await Mta.at(at.gateway.source.port)
        await mta.connect()
        asking = asyncio.create_task(mta.send_mail(MIME))
        await until(lambda: held)
        at.gateway.stop()
        assert await idle.is_closed()
        idle.leave()
        held[0][0].continue_(held[0][1])
        assert await asking == "continue"
        assert await mta.is_closed()


@run
async def test_by_a_unix_socket(tmp_path: Path) -> None:
    async with asked(plugin(message=lambda context, mail: None), where=f"unix:{tmp_path}/milter") as (mta, _at):
        await mta.connect()
        assert await mta.send_mail(MIME) == "continue"


@run
async def test_a_hook_that_comes_later_is_for_new_sessions() -> None:
    async with asked() as (mta, at):
        await mta.connect()
        at.gateway.dispatcher.plugins.add("20-late", SimpleNamespace(mq_smtp_in_mailfrom=refuse_all))
        await asyncio.sleep(0.01)
        assert await mta.send_mail(MIME) == "continue"
        other = await Mta.at(at.gateway.source.port)
        await other.connect()
        assert await other.send_mail(MIME) == "550 5.7.1 no"
        other.leave()


def refuse_all(context: Any, message: Mail, *arguments: Any) -> None:
    message.reject(550, "5.7.1 no")
