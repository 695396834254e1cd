"""`amqp:` as a source: each message acknowledged once its mail is with its next owner, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp_broker import Item, QueueBroker, serving
from smtp_tools import ListSink, run

import mqcore
from mqcore.amqp.client import Properties, encode_properties
from mqcore.mail import FailedSink, Gateway, Mail, Report
from mqcore.mail.amqp.source import AmqpSource

RAW = "message/rfc822"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.delays", lambda: iter(lambda: 0.001, None))
    monkeypatch.setattr("mqcore.mail.amqp.declare.NEWBORN", 0.0)
    monkeypatch.setattr("mqcore.mail.amqp.outlet.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("mqcore.mail.amqp.consumer.LEFT_FOR", 0.01)


def message(number: int, *, id: str | None = "", **known: Any) -> Item:
    """One with an id of its own, unless `id` says otherwise."""
    body = {"envelope": "a@example.org", "recipient": "b@example.org", "mime": f"Subject: {number}\n\nhello\n", **known}
    return Item(json.dumps(body).encode(), encode_properties(Properties(message_id=f"m{number}" if id == "" else id)))


def number_of(mime: bytes) -> int:
    return int(mime.partition(b"Subject: ")[2].split()[0])


class Running:
    def __init__(self, broker: QueueBroker, gateway: Gateway, sink: Any, failed: ListSink) -> None:
        self.broker = broker
        self.gateway = gateway
        self.sink = sink
        self.failed = failed
        self.report: Report | None = None

    @property
    def counts(self) -> Any:
        return self.gateway.report.counts

    @property
    def stored(self) -> list[int]:
        return sorted(number_of(mail.mime) for mail in self.sink.mails)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                assert self.gateway.report.error is None, self.gateway.report.error
                await asyncio.sleep(0.001)

    async def settled(self, count: int) -> None:
        """Until the broker has heard of so many."""
        await self.until(lambda: len(self.broker.settled) >= count)


@contextlib.asynccontextmanager
async def reading(
    broker: QueueBroker,
    hook: Any = None,
    *,
    sink: Any = None,
    mixed: bool = False,
    query: str = "queue=q",
    fails: bool = False,
    **options: Any,
) -> AsyncIterator[Running]:
    """A run, which is stopped at the end. Its counts add up, and the broker has heard of all that it gave."""
    plugins = mqcore.Plugins()
    if hook is not None:
        plugins.add("10-test", SimpleNamespace(mq_smtp_in_message=hook))
    failed = ListSink()
    async with serving(broker):
        source = AmqpSource(f"//guest:secret@127.0.0.1:{broker.port}/?{query}")
        for name in [name for name in options if hasattr(source, name)]:
            setattr(source, name, options.pop(name))
        sink = sink or ListSink()
        with contextlib.closing(source), mqcore.Dispatcher(plugins) as dispatcher:
            gateway = Gateway(dispatcher, source, sink, FailedSink(failed, source.url) if mixed else None, **options)
            running = asyncio.create_task(gateway.run())
            it = Running(broker, gateway, sink, failed)
            try:
                yield it
            finally:
                gateway.stop(patience=0.2)
                it.report = await running
        counts = it.report.counts
        ends = (counts.present, counts.continued, counts.completed, counts.failed, counts.rejected, counts.discarded)
        assert counts.read == sum(ends) + counts.retried + counts.unfinished, counts
        assert gateway.in_flight == gateway.bytes == 0
        assert (it.report.error is not None) == fails, it.report.error
        assert broker.unsettled == 0


@run
async def test_what_is_read_and_acknowledged():
    broker = QueueBroker()
    seen: list[Mail] = []
    broker.put("q", *(message(number, own=[number]) for number in range(20)))
    async with reading(broker, lambda context, mail: seen.append(mail)) as it:
        await it.settled(20)
        assert it.stored == [*range(20)] and len(broker.acked) == 20
        assert (seen[3].envelope, seen[3].recipient, seen[3].json["own"]) == ("a@example.org", "b@example.org", [3])
        assert it.gateway.source.figures()["amqp_in"]["acks"] == 20
        assert it.gateway.source.figures()["amqp_in"]["connections"] == 2
    assert it.report.exit_code == 0 and it.counts.continued == 20
    assert broker.names.count("basic.consume") == 1 and broker.prefetches == [1000]
    assert broker.names.count("basic.ack") < 20, "those of one turn go together"


@run
async def test_no_more_than_may_be_on_the_way():
    broker = QueueBroker()
    broker.put("q", *map(message, range(10)))
    async with reading(broker, lambda context, mail: True, max_in_flight=3) as it:
        await it.until(lambda: broker.delivered == 3)
        assert broker.unsettled == 3 and broker.prefetches == [3]
    assert it.counts.read == it.counts.unfinished == 3
    assert [how for how, _ in broker.settled] == ["nack"] * 3, "what a plugin held goes back"
    assert len(broker.queues["q"]) == 10


@run
async def test_raw_mails_have_what_is_known_in_headers():
    broker = QueueBroker()
    seen: list[Mail] = []
    headers = {"envelope": "a@b", "recipients": ["c@d", "e@f"], "x-own": 1}
    broker.put("q", Item(b"Subject: 1\r\n\r\n\xff\r\n", encode_properties(Properties(content_type=RAW, headers=headers))))
    async with reading(broker, lambda context, mail: seen.append(mail)) as it:
        await it.settled(1)
        assert seen[0].mime == b"Subject: 1\r\n\r\n\xff\r\n"
        assert (seen[0].envelope, seen[0].recipients, "x-own" in seen[0].json) == ("a@b", ["c@d", "e@f"], False)


@run
async def test_the_first_signal():
    """What the sink has is acknowledged, what plugins hold goes back, as does what comes later."""
    broker = QueueBroker()
    broker.put("q", *map(message, range(6)))
    held: list[Any] = []

    def hold(context, mail):
        if number_of(mail.mime) >= 3:
            held.append(mail)
            return True
        return False

    async with reading(broker, hold) as it:
        await it.until(lambda: len(held) == 3 and len(broker.settled) == 3)
        it.gateway.stop()
        broker.put("q", message(7))
    assert it.stored == [0, 1, 2] and it.counts.unfinished == 3
    assert sorted(number_of(json.loads(body)["mime"].encode()) for body in broker.bodies("q")) == [3, 4, 5, 7]
    assert broker.names.index("basic.cancel") > broker.names.index("basic.consume")


@run
async def test_stopped_before_there_is_a_connection():
    broker = QueueBroker(connection__start_ok=None)
    async with reading(broker) as it:
        await broker.until(lambda: broker.names)
        it.gateway.stop()


@run
async def test_what_the_sink_has_already_is_skipped():
    broker = QueueBroker()

    class Remembering(ListSink):
        def __contains__(self, id):
            return any(mail.origin.id == id for mail in self.mails)

    broker.put("q", message(1), message(1), message(2, id=None), message(2, id=None))
    async with reading(broker, sink=Remembering(), max_in_flight=1) as it:
        await it.settled(4)
        assert it.stored == [1, 2, 2]
    assert it.counts.present == 1 and it.counts.continued == 3
