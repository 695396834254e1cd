"""A connection to a broker that lives, and is of no use: what was asked is not answered, what was published gets no outcome, or
a queue refuses all. Another connection is tried."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from amqp_broker import Broker, QueueBroker, broker
from amqp_reading import reading
from amqp_tools import method
from sending_tools import ListSource
from smtp_tools import ListSink, run

import mqcore
from mqcore.amqp._properties import decode_properties
from mqcore.amqp.client import Blocked, ClientOptions
from mqcore.mail import FailedSink, Gateway, Mail, Report, Source, Transaction, Verdict
from mqcore.mail.amqp.connection import Address, BrokerError, Connection
from mqcore.mail.amqp.publishing import Publishing
from mqcore.mail.amqp.session import Session
from mqcore.mail.amqp.sink import AmqpSink
from mqcore.mail.report import Counts

OPTIONS = ClientOptions(user="guest", password="secret", heartbeat=0)
MAILS = [b"Subject: %d\n\nhello\n" % number for number in range(5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.delays", lambda: iter(lambda: 0.001, None))
    monkeypatch.setattr("mqcore.mail.amqp.declare.NEWBORN", 0.0)
    for module in ("publisher", "outlet"):
        monkeypatch.setattr(f"mqcore.mail.amqp.{module}.FIRST_PAUSE", 0.001)
        monkeypatch.setattr(f"mqcore.mail.amqp.{module}.LONGEST_PAUSE", 0.01)


class PersistentSource(Source):
    """A client waits for each mail, and sends it again when it is refused for now."""

    url = "persistent:"
    has_waiting_client = True

    async def run(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.left = len(MAILS)
        self.is_over = asyncio.Event()
        gateway.offer([Persistent(mime, self) for mime in MAILS])
        await self.is_over.wait()

    def stop(self) -> None:
        """It ends when all is taken."""


class Persistent(Transaction):
    def __init__(self, mime: bytes, source: PersistentSource) -> None:
        super().__init__([Mail(mime, envelope="a@b", recipients=["c@d"])])
        self.mime = mime
        self.source = source

    def settle(self, verdicts: list[Verdict]) -> None:
        if verdicts[0].is_good:
            self.source.left -= 1
            if not self.source.left:
                self.source.is_over.set()
        else:
            again = lambda: self.source.gateway.offer([Persistent(self.mime, self.source)])  # noqa: E731
            asyncio.get_running_loop().call_later(0.001, again)


async def move(it: Broker, source: Source) -> Report:
    sink = AmqpSink(f"//guest:secret@127.0.0.1:{it.port}/?queue=q")
    with contextlib.closing(sink), mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        async with asyncio.timeout(60):
            return await Gateway(dispatcher, source, sink, FailedSink(ListSink(), "list:")).run()


# A queue that refuses


@pytest.mark.parametrize("waits", [True, False])
@run
async def test_a_queue_that_refuses_all_on_this_connection(monkeypatch, waits):
    """Nothing is in doubt: what was on its way is waited for before it is left."""
    monkeypatch.setattr("mqcore.mail.amqp.publishing.REFUSED_FOR", 0.02)
    async with broker() as it:
        it.outcome = lambda number: "nack" if len(it.writers) == 1 else "ack"
        report = await move(it, ListSource(MAILS, "a@b", "c@d") if waits else PersistentSource())
        assert report.counts.continued == 5 and report.counts.in_doubt == 0 and report.counts.nacked >= 5
        assert len(it.writers) == 2 and report.counts.reconnects == 1


@run
async def test_a_queue_for_failed_mails_that_refuses_all_on_this_connection(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.publishing.REFUSED_FOR", 0.02)
    it = QueueBroker()
    it.outcome = lambda number: "nack" if len(it.writers) == 2 else "ack"  # one consumes
    it.put("q", b"no mail")
    async with reading(it) as reader:
        await reader.settled(1)
    assert len(it.queues["q.failed"]) == len(it.acked) == 1 and reader.counts.reconnects == 1
    assert reader.counts.in_doubt == 0


class Clock:
    """A loop that calls nothing."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Any, *arguments: Any) -> Any:
        self.calls.append((delay, call, arguments))
        return asyncio.get_running_loop().create_future()  # which has `cancel`


@contextlib.asynccontextmanager
async def publishing_to(it: Broker) -> Any:
    """Something that publishes, whose clock is ours, and the reasons why its connection is left."""

    async def nothing(connection: Connection) -> None:
        pass

    publishing = Publishing(Address("127.0.0.1", it.port), OPTIONS, nothing, pytest.fail, Counts(), 1000)
    clock, reasons = Clock(), list[str]()
    await publishing.session.start()
    publishing._loop, publishing._began = clock, clock.now  # type: ignore[assignment]
    publishing._look(0)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(publishing.session, "renew", reasons.append)
    yield publishing, clock, reasons
    monkeypatch.undo()
    await publishing.close()


@run
async def test_a_queue_that_is_full_for_long_is_tried_on_others_ever_less_often():
    async with broker() as it, publishing_to(it) as (publishing, clock, reasons):
        since = clock.now
        left = []
        while clock.now < since + 3600:
            clock.now += 1
            publishing.refused(since)
            if len(reasons) > len(left):
                left.append(clock.now - since)
                publishing._began, publishing._is_leaving = clock.now, False  # another one is there
        assert left == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560]
        assert reasons[1] == "a queue has refused what was published for 10 s"


@run
async def test_what_is_on_its_way_is_waited_for_when_a_connection_is_left():
    async with broker() as it, publishing_to(it) as (publishing, clock, reasons):
        outcomes: list[Any] = []
        take = lambda key, outcome: outcomes.append(outcome.kind)  # noqa: E731
        publishing.publish(publishing.connection, "", "q", b"\0\0", b"x", take, 0)
        clock.now += 10
        publishing.refused(clock.now - 10)
        assert publishing.connection is None and not reasons
        it.say(method(1, "basic.ack", 1, False))
        while not outcomes:
            await asyncio.sleep(0.001)
        delay, leave, arguments = clock.calls[-1]
        leave(*arguments)
        assert delay < 1 and outcomes == ["ack"] and len(reasons) == 1


@run
async def test_what_is_on_its_way_is_not_waited_for_without_end():
    async with broker() as it, publishing_to(it) as (publishing, clock, reasons):
        publishing.publish(publishing.connection, "", "q", b"\0\0", b"x", lambda *_: None, 0)
        clock.now += 10
        publishing.refused(clock.now - 10)
        clock.now += 6
        _, leave, arguments = clock.calls[-1]
        leave(*arguments)
        assert len(reasons) == 1


# Publishes without an outcome


@pytest.mark.parametrize("waits", [True, False])
@run
async def test_what_gets_no_outcome_is_published_on_another_connection(monkeypatch, waits):
    monkeypatch.setattr("mqcore.mail.amqp.publishing.UNCONFIRMED_FOR", 0.05)
    async with broker() as it:
        it.outcome = lambda number: None if len(it.writers) == 1 else "ack"
        report = await move(it, ListSource(MAILS, "a@b", "c@d") if waits else PersistentSource())
        assert report.counts.continued == 5 and report.counts.in_doubt == 5 == len(it.sent) - 5
        ids = [decode_properties(properties).message_id for properties, _ in it.sent]
        assert len(it.writers) == 2 and set(ids[:5]) == set(ids[5:])


@run
async def test_how_long_an_outcome_is_waited_for():
    """Between once and twice as long as was said; then twice as long, until one comes."""
    async with broker() as it, publishing_to(it) as (publishing, clock, reasons):
        assert clock.calls[-1][0] == 60
        clock.calls[-1][1](*clock.calls[-1][2])
        assert not reasons, "nothing is on its way"
        publishing.publish(publishing.connection, "", "q", b"\0\0", b"x", lambda *_: None, 0)
        for _ in range(2):
            clock.calls[-1][1](*clock.calls[-1][2])
        assert reasons == ["the broker has left what was published without an outcome for 60 s"]
        publishing._look(0)
        assert clock.calls[-1][0] == 120
        publishing._hear(Blocked("low on memory"))
        for _ in range(3):
            clock.calls[-1][1](*clock.calls[-1][2])
        assert len(reasons) == 1, "it says that it takes nothing"
        publishing._acks_before = -1  # as one came
        publishing._look(0)
        assert clock.calls[-1][0] == 60


# Requests without an answer


@run
async def test_a_request_that_is_not_answered_ends_the_connection(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.connection.ANSWER_TIMEOUT", 0.05)
    async with broker(basic__get=None) as it:
        connection = await Connection.open(Address("127.0.0.1", it.port), OPTIONS, lambda event: None)
        channel = await connection.open_channel()
        with pytest.raises(BrokerError, match="left a request without an answer for 0.05 s") as caught:
            await connection.ask(channel, connection.protocol.get, "q")
        assert not caught.value.final and not connection.is_open


@run
async def test_an_answer_that_waits_for_us_is_not_missed(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.connection.ANSWER_TIMEOUT", 0.02)
    async with broker() as it:
        connection = await Connection.open(Address("127.0.0.1", it.port), OPTIONS, lambda event: None)
        channel = await connection.open_channel()
        connection.pause_reading()
        asking = asyncio.ensure_future(connection.ask(channel, connection.protocol.get, "q"))
        for _ in range(3):
            await asyncio.sleep(0.03)
        assert connection.is_open
        connection.resume_reading()
        await asking
        await connection.close()


@run
async def test_a_session_whose_request_is_not_answered_tries_another_connection(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.connection.ANSWER_TIMEOUT", 0.05)

    async def consume(connection: Connection) -> None:
        channel = await connection.open_channel()
        await connection.ask(channel, connection.protocol.consume, "q", "mqcore")

    def answer(channel: int, *_: object) -> bytes:
        return b"" if len(it.writers) == 1 else method(channel, "basic.consume-ok", "mqcore")

    async with broker(basic__consume=answer) as it:
        session = Session(Address("127.0.0.1", it.port), OPTIONS, consume, lambda event: None, pytest.fail, Counts())
        await session.start()
        assert len(it.writers) == 2
        await session.close()
