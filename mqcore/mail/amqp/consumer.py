"""Takes messages out of a queue: each is acknowledged when its mail is with its next owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ...amqp.client import ChannelClosed, ClientOptions, ConnectionClosed, ConsumeCancelled, Delivery, Event, Properties
from ..errors import SourceError
from ..verdicts import PutBack, Verdict
from ._incoming import Incoming, read_incoming
from .body import Unreadable
from .connection import Address, BrokerError, Connection, Unreachable, Writable
from .declare import count_messages
from .message import begin_id, read_properties
from .outlet import MAX_BODY, Outlet
from .results import results_of
from .retries import time_to_wait
from .returns import Returns
from .session import Session
from .subscription import Subscription

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .url import AmqpUrl

HELD_BYTES = 64 << 20
"""No more is read from the broker while messages of so many octets are held: it knows no limit but their number."""
REMEMBERED = 10_000
"""Ids of messages that are done with: of some the broker may never have heard that."""
LEFT_FOR = 1.0
"""Seconds until what could not be finished goes back to the queue, which gives it to somebody at once."""
GOODBYE = 5.0
"""Seconds for what is left to be said when all is over."""
EMPTY_AFTER = 1.0
"""Seconds without a message until the queue is asked whether it is empty."""

log = logging.getLogger(__name__)


class Consumer:
    """Reads for a source, from `run` until all is settled; then `end` is called."""

    def __init__(
        self, where: AmqpUrl, login: tuple[str, str], tls: ssl.SSLContext | None, gateway: Gateway, *, starts_slowly: bool
    ) -> None:
        address = Address(where.host, where.port, tls)
        self._where = where
        self._gateway = gateway
        self._counts = gateway.report.counts
        self._outlet = Outlet(where, address, _options(where, login, f"mqcore beside {where.queue}"), gateway)
        self._returns = Returns(where, self._outlet, has_failed=gateway.failed is not None)
        options = _options(where, login, f"mqcore from {where.queue}")
        self._session = Session(address, options, self._set_up, self._hear, self._fail, self._counts, on_message=self._take)
        self._subscription = Subscription(
            where.queue, lambda: gateway.max_in_flight, lambda: bool(self._open), slowly=starts_slowly
        )
        self._open: dict[Delivery, Incoming | None] = {}
        """All that the broker waits to hear of."""
        self._bytes = 0
        self._most_bytes = HELD_BYTES // gateway.processes
        self._offered: list[Incoming] = []
        self._done: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._pausing: asyncio.Task[None] | None = None
        self._place = 0
        self._digest = begin_id(where.queue)
        self._loop = asyncio.get_running_loop()
        self._deliveries = [0, 0]
        self._acks = 0
        self._last = 0.0

    def figures(self) -> dict[str, Any]:
        first, again = self._deliveries
        return {
            **self._outlet.publishing.figures(),
            "connections": int(self._session.connection is not None)
            + int(self._outlet.publishing.session.connection is not None),
            "reconnects": self._session.reconnects + self._outlet.publishing.session.reconnects,
            "deliveries": {"false": first, "true": again},
            "acks": self._acks,
        }

    # From the first connection to the last

    async def run(self) -> None:
        """Until it is stopped, or the queue is empty and that is the end. Raises SourceError."""
        starting = asyncio.create_task(self._start())
        await self._first_of(starting)
        if starting.done():
            await starting
        else:
            starting.cancel()
            await asyncio.wait([starting])
        if self._where.until_empty:
            await self._first_of(asyncio.create_task(self._until_empty()))
        await self._stopped.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE):
                await self._subscription.ended()

    async def _first_of(self, task: asyncio.Task[None]) -> None:
        """It, or that this is stopped."""
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    async def _start(self) -> None:
        try:
            await self._outlet.start()
            await self._session.start()
        except Unreachable as error:
            raise SourceError(f"cannot read {self._where}: {error}") from error

    def _fail(self, error: Unreachable) -> None:
        self._gateway.fail(f"cannot read {self._where}: {error}")

    async def _set_up(self, connection: Connection) -> None:
        await self._subscription.begin(connection)

    async def _until_empty(self) -> None:
        now = asyncio.get_running_loop().time
        self._last = now()
        while True:
            await asyncio.sleep(max(EMPTY_AFTER - (now() - self._last), 0.01))
            connection = self._session.connection
            if self._open or connection is None or now() < self._last + EMPTY_AFTER:
                self._last = max(self._last, now() - EMPTY_AFTER / 2)
                continue
            with contextlib.suppress(BrokerError):
                if await count_messages(connection, self._where.queue) == 0 and not self._open:
                    self._gateway.drain()
                    return
            self._last = now()

    def stop(self) -> None:
        """No more is taken. What comes until the broker has heard of that goes back."""
        self._stopped.set()
        self._subscription.suspend()
        if self._pausing is not None:
            self._pausing.cancel()

    async def end(self) -> None:
        """All that was offered is settled: what the broker gave us beside that goes back to it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GOODBYE)
        for task in (*self._tasks, self._pausing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._subscription.close()
        connection = self._session.connection
        if connection is not None:
            for delivery in self._open:
                connection.protocol.nack(delivery)
        await self._session.close()
        await self._outlet.close()

    # What the broker says

    def _hear(self, event: Event | Writable) -> None:
        if isinstance(event, ConsumeCancelled):
            self._session.renew(f"the broker cancelled the consumer of {self._where.queue}: it is deleted, or moved")
        elif isinstance(event, ConnectionClosed):
            self._lose_all()
        elif isinstance(event, ChannelClosed) and event.by_broker:
            self._lose_all()
            self._session.renew(event.text)

    def _lose_all(self) -> None:
        """Whatever the broker gave us, it gives to somebody again."""
        lost, self._open = self._open, {}
        self._bytes = 0
        self._subscription.lose()
        for incoming in lost.values():
            if incoming is not None:
                incoming.is_void = True
                incoming.void()
        self._outlet.publishing.wake()

    def _take(self, delivery: Delivery) -> None:
        connection = self._subscription.connection
        assert connection is not None
        self._last = self._loop.time()
        self._open[delivery] = None
        self._bytes += delivery.size
        if self._bytes > self._most_bytes:
            connection.pause_reading()
        if self._stopped.is_set():
            return
        self._deliveries[delivery.redelivered] += 1
        if delivery.redelivered:
            self._counts.redelivered += 1
        self._place += 1
        try:
            incoming = read_incoming(self, connection, delivery, self._digest, self._place)
        except Unreadable as error:
            self._begin(self._turn_away(connection, delivery, str(error)))
            return
        if incoming.has_id and self._is_present(incoming):
            self._gateway.skip(1)
            self._ack(incoming, is_over=True)
            return
        known = incoming.mails[0].json
        if "nextattempt" in known and self._where.ladder:
            seconds = time_to_wait(known, time.time())
            if seconds:
                self._begin(self._put_off(incoming, seconds))
                return
        self._open[delivery] = incoming
        if not self._offered:
            self._loop.call_soon(self._offer_all)
        self._offered.append(incoming)

    def _is_present(self, incoming: Incoming) -> bool:
        return (incoming.delivery.redelivered and incoming.id in self._done) or self._gateway.has(incoming.id)

    def _offer_all(self) -> None:
        offered, self._offered = self._offered, []
        if not self._stopped.is_set():
            self._gateway.offer([incoming for incoming in offered if not incoming.is_void])

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _turn_away(self, connection: Connection, delivery: Delivery, reason: str) -> None:
        try:
            properties = read_properties(delivery)
        except Unreadable:
            properties = Properties()
        if await self._returns.turn_away(delivery, properties, reason, lambda: delivery in self._open):
            self._gateway.turn_away(1, False)
            self._acknowledge(connection, delivery)

    async def _put_off(self, incoming: Incoming, seconds: float) -> None:
        delivery = incoming.delivery
        if await self._returns.put_off(delivery, incoming.letter.message, seconds, lambda: delivery in self._open):
            self._gateway.count_put_off(1)
            self._ack(incoming, is_over=False)

    # What the gateway says

    def settle(self, incoming: Incoming, verdict: Verdict) -> None:
        if not verdict.is_good:
            if not (incoming.is_void or self._stopped.is_set()):
                asyncio.get_running_loop().call_later(LEFT_FOR, self._leave, incoming)
        elif self._where.results and not incoming.is_put_back:
            self._begin(self._tell_result(incoming, verdict))
        else:
            self._ack(incoming, is_over=not incoming.comes_again)

    async def _tell_result(self, incoming: Incoming, verdict: Verdict) -> None:
        results = results_of(incoming.letter.mail, verdict, time.time())
        await self._returns.tell_result(incoming.letter, results)
        self._ack(incoming, is_over=True)

    async def put_back(self, incoming: Incoming, verdict: Verdict) -> PutBack:
        if verdict.unavailable:
            self._pause()
            return PutBack.LEFT
        how = await self._returns.put_back(incoming.letter, verdict)
        incoming.is_put_back = True
        incoming.comes_again = how is PutBack.RETRIED
        return how

    def _ack(self, incoming: Incoming, *, is_over: bool) -> None:
        """The queue need not have it any more. Unless it is over, it may come again with the same id."""
        self._acknowledge(incoming.connection, incoming.delivery)
        if is_over and incoming.has_id:
            self._done[incoming.id] = None
            if len(self._done) > REMEMBERED:
                self._done.popitem(last=False)

    def _acknowledge(self, connection: Connection, delivery: Delivery) -> None:
        if connection.ack(delivery):
            self._acks += 1
            self._subscription.acked()
        else:
            self._counts.in_doubt += 1
        self._forget(connection, delivery)

    def _leave(self, incoming: Incoming) -> None:
        """The queue may give it to somebody else."""
        if not (incoming.is_void or self._stopped.is_set()):
            incoming.connection.protocol.nack(incoming.delivery)
            incoming.connection.flush_soon()
            self._forget(incoming.connection, incoming.delivery)

    def _forget(self, connection: Connection, delivery: Delivery) -> None:
        if delivery in self._open:
            del self._open[delivery]
            self._bytes -= delivery.size
            if self._bytes <= self._most_bytes:
                connection.resume_reading()
            if not self._open:
                self._subscription.drained()

    # When there is no next owner

    def _pause(self) -> None:
        if self._pausing is None and not self._stopped.is_set():
            log.warning("there is no next owner for mails of %s: none are taken until there is", self._where)
            self._subscription.suspend()
            self._pausing = asyncio.create_task(self._wait_for_owner())

    async def _wait_for_owner(self) -> None:
        await self._gateway.sink.ready()
        self._pausing = None
        if not self._stopped.is_set():
            self._subscription.restart()


def _options(where: AmqpUrl, login: tuple[str, str], name: str) -> ClientOptions:
    return ClientOptions(
        user=login[0],
        password=login[1],
        vhost=where.vhost,
        heartbeat=where.heartbeat,
        properties={"product": "mqcore", "connection_name": name},
        max_body=MAX_BODY,
    )
