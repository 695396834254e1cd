"""A run whose source is a queue of a broker made of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from amqp_broker import QueueBroker, serving
from smtp_tools import ListSink

import mqcore
from mqcore.mail import FailedSink, Gateway, Report
from mqcore.mail.amqp.source import AmqpSource


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
        async with asyncio.timeout(60):
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
    starts_slowly: bool = False,
    **options: Any,
) -> AsyncIterator[Running]:
    """A run, which is stopped at the end. Its counts add up, and the broker has heard of all that it gave."""
    plugins = mqcore.Plugins()
    if hook is not None:
        plugins.add("10-test", SimpleNamespace(mq_smtp_in_message=hook))
    failed = ListSink()
    async with serving(broker):
        source = AmqpSource(f"//guest:secret@127.0.0.1:{broker.port}/?{query}", starts_slowly=starts_slowly)
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


def disconnect(broker: QueueBroker) -> None:
    for writer in broker.writers:
        writer.transport.abort()
