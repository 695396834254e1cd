"""Connections to a broker, and what keeps one up: against a broker made of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import ANY

import pytest
import trustme
from amqp_broker import Broker, broker
from amqp_tools import NONE, OPEN_OK, deliver, frame, method, published, returned, with_channel
from smtp_tools import run
from waiting import until

from mqcore.amqp.client import (
    Blocked,
    ChannelClosed,
    ClientOptions,
    ConnectionClosed,
    ConsumeCancelled,
    Delivery,
    GetEmpty,
    Outcome,
    QueueDeclared,
)
from mqcore.mail.amqp._link import Link
from mqcore.mail.amqp.connection import Address, BrokerError, Connection, Unreachable
from mqcore.mail.amqp.session import Session, delays
from mqcore.mail.report import Counts

OPTIONS = ClientOptions(user="guest", password="secret", heartbeat=0)


class Events(list[Any]):
    """What a connection told, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()

    def __call__(self, event: Any) -> None:
        self.append(event)
        self.news.set()

    async def until(self, kind: type, count: int = 1) -> Any:
        async with asyncio.timeout(30):
            while sum(isinstance(event, kind) for event in self) < count:
                self.news.clear()
                await self.news.wait()
        return next(event for event in reversed(self) if isinstance(event, kind))


async def connect(
    it: Broker, events: Events, options: ClientOptions = OPTIONS, tls: ssl.SSLContext | None = None
) -> Connection:
    return await Connection.open(Address("localhost" if tls else "127.0.0.1", it.port, tls), options, events)


@run
async def test_a_connection():
    events = Events()
    async with broker() as it:
        connection = await connect(it, events)
        assert connection.is_open and connection.server["product"] == "RabbitMQ"
        channel = await connection.open_channel(confirms=True)
        assert await connection.ask(channel, connection.protocol.get, "q") == GetEmpty(channel)
        assert (await connection.ask(channel, connection.protocol.declare_queue, "q", passive=True)).queue == "q"
        tags = [connection.publish(channel, "", "q", NONE, b"x") for _ in range(3)]
        await it.until(lambda: len(it.sent) == 3)
        it.say(method(channel, "basic.ack", 2, True) + method(0, "connection.blocked", "low on memory"))
        await events.until(Blocked)
        assert [(event.tag, event.kind) for event in events[:2]] == [(tags[0], "ack"), (tags[1], "ack")]
        await connection.close()
        assert (events[-2].tag, events[-2].kind) == (3, "in doubt")
        assert events[-1] == ConnectionClosed(200, "closed", "", False) and not connection.is_open
        assert it.names[-1] == "connection.close"


class Parts(Link):
    """One whose transport takes down what it is to send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        super().__init__(with_channel(confirms=True), asyncio.get_running_loop(), lambda message: None)

    def send(self, parts: list[bytes | memoryview]) -> None:
        self.sent += parts


@run
async def test_a_large_body_is_sent_from_where_it_is():
    link = Parts()
    body = b"x" * 50_000
    for each in (body, b"small", body):
        link.publish(1, "", "q", NONE, each)
    link.flush()
    assert sum(part is body for part in link.sent) == 2 and len(link.sent) == 5
    assert published(b"".join(link.sent)) == [(ANY, each) for each in (body, b"small", body)]


@run
async def test_a_buffer_that_is_read_into_has_what_was_read():
    link = Parts()
    heard: list[Any] = []
    link.hear = heard.append
    link.protocol.declare_queue(1, "q")
    size = len(link.get_buffer(-1))
    for wrong in (-1, size + 1):
        with pytest.raises(ValueError, match=f"{wrong} octets in a buffer of {size}"):
            link.buffer_updated(wrong)
    answer = method(1, "queue.declare-ok", "q", 3, 2)
    for octets in (answer[:5], answer[5:]):
        buffer = link.get_buffer(-1)
        buffer[: len(octets)] = octets
        link.buffer_updated(len(octets))
    assert heard == [QueueDeclared(1, "q", 3, 2)]


@run
async def test_deliveries_and_acks_of_a_turn_go_together():
    events = Events()
    async with broker() as it:
        connection = await connect(it, events)
        channel = await connection.open_channel()
        await connection.ask(channel, connection.protocol.consume, "q", "mine")
        it.say(b"".join(deliver(channel, tag, b"x") for tag in range(1, 6)))
        await events.until(Delivery, 5)
        for delivery in list(events):
            assert connection.ack(delivery)
        await it.until(lambda: "basic.ack" in it.names)
        await connection.ask(channel, connection.protocol.get, "q")
        assert it.names.count("basic.ack") == 1
        it.say(method(channel, "basic.cancel", "mine", True))
        assert await events.until(ConsumeCancelled) == ConsumeCancelled(channel, "mine", True)
        await connection.close()


@run
async def test_what_is_waited_for_ends_with_the_channel():
    events = Events()
    refuse = lambda channel, *_: method(channel, "channel.close", 404, "NOT_FOUND - no queue 'q'", 50, 10)  # noqa: E731
    async with broker(queue__declare=refuse) as it:
        connection = await connect(it, events)
        channel = await connection.open_channel()
        with pytest.raises(BrokerError, match="NOT_FOUND - no queue 'q'") as caught:
            await connection.ask(channel, connection.protocol.declare_queue, "q", passive=True)
        assert caught.value.code == 404 and caught.value.final
        assert events == [ChannelClosed(channel, 404, "NOT_FOUND - no queue 'q'", "queue.declare", True)]
        assert await connection.open_channel() != channel
        await connection.close()


@run
async def test_what_is_waited_for_ends_with_the_connection():
    events = Events()
    async with broker(basic__get=None) as it:
        connection = await connect(it, events)
        channel = await connection.open_channel()
        asking = asyncio.ensure_future(connection.ask(channel, connection.protocol.get, "q"))
        await it.until(lambda: "basic.get" in it.names)
        it.writers[-1].transport.abort()
        with pytest.raises(BrokerError, match="the (connection broke|broker closed the connection)") as caught:
            await asking
        assert not caught.value.final and isinstance(events[-1], ConnectionClosed)
        assert not connection.is_open
        await connection.close()


@pytest.mark.parametrize(
    ("answers", "text", "final"),
    [
        (
            {"connection__start_ok": lambda *_: method(0, "connection.close", 403, "ACCESS_REFUSED - no", 0, 0)},
            "ACCESS_REFUSED",
            True,
        ),
        (
            {"connection__open": lambda *_: method(0, "connection.close", 530, "NOT_ALLOWED - vhost", 10, 40)},
            "NOT_ALLOWED",
            True,
        ),
        (
            {"connection__open": lambda *_: method(0, "connection.close", 320, "CONNECTION_FORCED", 0, 0)},
            "CONNECTION_FORCED",
            False,
        ),
        ({"connection__open": lambda *_: b"HTTP/1.1 400 no"}, "no frames of type 72", False),
    ],
)
@run
async def test_a_broker_that_refuses(answers, text, final):
    async with broker(**answers) as it:
        with pytest.raises(Unreachable, match=text) as caught:
            await connect(it, Events())
        assert caught.value.final == final and str(caught.value).startswith(f"127.0.0.1:{it.port}: ")
        assert "secret" not in str(caught.value)


@run
async def test_nobody_listens():
    async with broker() as it:
        pass
    with pytest.raises(Unreachable, match=f"127.0.0.1:{it.port}: .*(refused|Connect call failed)"):
        await connect(it, Events())


@run
async def test_a_broker_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.connection.CONNECT_TIMEOUT", 0.05)
    async with broker(connection__start_ok=None) as it:
        with pytest.raises(Unreachable, match="no answer within 0.05 s"):
            await connect(it, Events())


@run
async def test_tls():
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with broker(tls=theirs) as it:
        connection = await connect(it, Events(), tls=ours)
        channel = await connection.open_channel()
        assert await connection.ask(channel, connection.protocol.get, "q") == GetEmpty(channel)
        await connection.close()
        with pytest.raises(Unreachable, match="its certificate is not valid") as caught:
            await connect(it, Events(), tls=ssl.create_default_context())
        assert caught.value.final
    async with broker() as it:
        with pytest.raises(Unreachable):
            await connect(it, Events(), tls=ours)


@run
async def test_a_silent_broker_is_left(monkeypatch):
    """After two intervals, here of a fraction of a second; heartbeats keep a connection up."""
    monkeypatch.setattr("mqcore.mail.amqp.connection.HALF", 0.002)
    events = Events()
    async with broker() as it:
        connection = await connect(it, events, ClientOptions(user="a", heartbeat=10))
        await it.until(lambda: it.heartbeats >= 2)
        closed = await events.until(ConnectionClosed)
        assert closed.text == "the broker has said nothing for 20 s" and not connection.is_open


@run
async def test_silence_is_not_counted_while_nothing_is_read(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.connection.HALF", 0.002)
    events = Events()
    async with broker() as it:
        connection = await connect(it, events, ClientOptions(user="a", heartbeat=10))
        connection.pause_reading()
        connection.pause_reading()
        await it.until(lambda: it.heartbeats >= 20)
        assert connection.is_open and not events
        it.say(method(0, "connection.blocked", "why"))
        connection.resume_reading()
        connection.resume_reading()
        await events.until(Blocked)
        connection.abort("enough")
        assert (await events.until(ConnectionClosed)).text == "enough"
        connection.pause_reading()
        connection.resume_reading()


@run
async def test_what_makes_no_sense_ends_the_connection():
    events = Events()
    async with broker() as it:
        connection = await connect(it, events)
        it.say(frame(1, 7, b"\0\x3c\0\x50" + bytes(9)))
        assert (await events.until(ConnectionClosed)).code == 504
        await it.until(lambda: "connection.close" in it.names)
        await connection.close()


@run
async def test_a_return_is_told():
    events = Events()
    async with broker() as it:
        connection = await connect(it, events)
        channel = await connection.open_channel(confirms=True)
        connection.publish(channel, "", "nowhere", NONE, b"x")
        await it.until(lambda: it.sent)
        it.say(returned(channel, it.sent[0][0]) + method(channel, "basic.ack", 1, False))
        outcome = await events.until(Outcome)
        assert (outcome.kind, outcome.code) == ("returned", 312)
        await connection.close()


@run
async def test_a_broker_that_does_not_close(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.connection.CLOSE_TIMEOUT", 0.05)
    events = Events()
    async with broker(connection__close=None) as it:
        connection = await connect(it, events)
        await connection.close()
        assert (await events.until(ConnectionClosed)).text == "closed"


# Sessions


class Ends(list[Unreachable]):
    """What a session gave up for, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()

    def __call__(self, error: Unreachable) -> None:
        self.append(error)
        self.news.set()


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.delays", lambda: iter(lambda: 0.001, None))


@contextlib.asynccontextmanager
async def session(it: Broker, set_up: Callable[[Connection], Any] | None = None) -> AsyncIterator[tuple[Session, Events, Ends]]:
    async def nothing(connection: Connection) -> None:
        await connection.open_channel(confirms=True)

    events, ends = Events(), Ends()
    kept = Session(Address("127.0.0.1", it.port), OPTIONS, set_up or nothing, events, ends, Counts())
    await kept.start()
    try:
        yield kept, events, ends
    finally:
        await kept.close()


@run
async def test_a_connection_that_is_lost_is_made_again():
    async with broker() as it, session(it) as (kept, events, ends):
        first = kept.connection
        first.publish(1, "", "q", NONE, b"x")
        await it.until(lambda: it.sent)
        it.writers[-1].transport.abort()
        await events.until(ConnectionClosed)
        assert [type(event).__name__ for event in events] == ["Outcome", "ConnectionClosed"]
        await until(lambda: kept.connection)
        assert kept.connection is not first and kept.reconnects == 1 and it.names.count("confirm.select") == 2
        it.say(method(0, "connection.close", 320, "CONNECTION_FORCED - broker shut down", 0, 0))
        await events.until(ConnectionClosed, 2)
        await until(lambda: kept.connection)
        assert kept.reconnects == 2 and not ends
    assert isinstance(events[-1], ConnectionClosed) and kept.connection is None


@run
async def test_a_channel_that_the_broker_closes_is_made_again_with_its_connection():
    async with broker() as it, session(it) as (kept, events, _):
        it.say(method(1, "channel.close", 406, "PRECONDITION_FAILED - delivery acknowledgement timed out", 0, 0))
        assert "timed out" in (await events.until(ChannelClosed)).text
        await until(lambda: kept.connection and kept.reconnects == 1)


@run
async def test_a_broker_that_is_away_for_a_while():
    """It refuses to be spoken to, then it is there again."""
    answers = itertools.chain([method(0, "connection.close", 541, "INTERNAL_ERROR", 0, 0)] * 3, itertools.repeat(OPEN_OK))
    async with broker(connection__open=lambda *_: next(answers)) as it, session(it) as (kept, _, ends):
        assert kept.connection.is_open and len(it.writers) == 4 and not ends


@run
async def test_at_the_start_it_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.PATIENCE", 0.01)
    async with broker() as it:
        pass
    with pytest.raises(Unreachable, match=str(it.port)):
        async with session(it):
            pass


@run
async def test_a_broker_that_refuses_is_not_asked_again():
    refuse = method(0, "connection.close", 403, "ACCESS_REFUSED - no", 0, 0)
    async with broker(connection__start_ok=lambda *_: refuse) as it:
        with pytest.raises(Unreachable, match="ACCESS_REFUSED"):
            async with session(it):
                pass
        assert len(it.writers) == 1


@run
async def test_a_refusal_later_ends_the_session():
    async with broker() as it, session(it) as (kept, _, ends):
        it.answers["connection.open"] = lambda *_: method(0, "connection.close", 530, "NOT_ALLOWED - vhost gone", 10, 40)
        it.writers[-1].transport.abort()
        await ends.news.wait()
        assert "NOT_ALLOWED - vhost gone" in str(ends[0]) and kept.connection is None


async def look_for_queue(connection: Connection) -> None:
    await connection.ask(await connection.open_channel(), connection.protocol.declare_queue, "q", passive=True)


NO_QUEUE = method(1, "channel.close", 404, "NOT_FOUND - no queue 'q'", 50, 10)


@run
async def test_a_queue_that_is_not_there_at_the_start():
    async with broker(queue__declare=lambda *_: NO_QUEUE) as it:
        with pytest.raises(Unreachable, match="NOT_FOUND - no queue 'q'") as caught:
            async with session(it, look_for_queue):
                pass
        assert caught.value.code == 404 and len(it.writers) == 1


@run
async def test_a_queue_that_is_gone_later_may_come_back():
    answers = itertools.chain(
        [method(1, "queue.declare-ok", "q", 0, 0)], [NO_QUEUE] * 3, [method(1, "queue.declare-ok", "q", 0, 0)]
    )
    async with broker(queue__declare=lambda *_: next(answers)) as it, session(it, look_for_queue) as (kept, _, ends):
        it.writers[-1].transport.abort()
        await until(lambda: kept.reconnects == 1)
        assert len(it.writers) == 5 and not ends


@run
async def test_a_queue_that_does_not_come_back(monkeypatch):
    answers = itertools.chain([method(1, "queue.declare-ok", "q", 0, 0)], itertools.repeat(NO_QUEUE))
    async with broker(queue__declare=lambda *_: next(answers)) as it, session(it, look_for_queue) as (_, __, ends):
        monkeypatch.setattr("mqcore.mail.amqp.session.PATIENCE", 0.01)
        it.writers[-1].transport.abort()
        await ends.news.wait()
        assert "NOT_FOUND" in str(ends[0])


def test_delays():
    """Each within a half of what it may be at most."""
    most = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    for _ in range(20):
        assert all(top / 2 <= delay <= top for top, delay in zip(most, delays(), strict=False))
