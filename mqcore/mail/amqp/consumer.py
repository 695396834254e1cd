"""Takes messages out of a queue: each is acknowledged when its mail is with its next owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ...amqp.client import ChannelClosed, ClientOptions, ConnectionClosed, ConsumeCancelled, Delivery, Event, Properties
from ..errors import SourceError
from ..verdicts import PutBack, Verdict
from ._incoming import Incoming, Intake
from .body import Unreadable
from .connection import Address, BrokerError, Connection, Unreachable, Writable
from .declare import count_messages
from .message import read_properties
from .outlet import MAX_BODY, Outlet
from .results import results_of
from .returns import Returns
from .session import Session
from .subscription import Subscription

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .url import AmqpUrl

HELD_BYTES = 64 << 20
"""No more is read from the broker while messages of so many octets are held: it knows no limit but their number."""
LEFT_FOR = 1.0
"""Seconds until what could not be finished goes back to the queue, which gives it to somebody at once."""
GOODBYE = 5.0
"""Seconds for what is left to be said when all is over."""
EMPTY_AFTER = 1.0
"""Seconds without a message until the queue is asked whether it is empty."""
FORGOTTEN_AFTER = 10.0
MOST_FORGOTTEN = 300.0
"""Seconds without a message, twice, until a queue that has some is taken to have forgotten us; twice as many each time."""

log = logging.getLogger(__name__)


class Consumer(Intake):
    """Reads for a source, from `run` until all is settled; then `end` is called."""

    def __init__(
        self, where: AmqpUrl, login: tuple[str, str], tls: ssl.SSLContext | None, gateway: Gateway, *, starts_slowly: bool
    ) -> None:
        address = Address(where.host, where.port, tls)
        self._where = where
        self._gateway = gateway
        self._outlet = Outlet(where, address, _options(where, login, f"mqcore beside {where.queue}"), gateway)
        self._returns = Returns(where, self._outlet, has_failed=gateway.failed is not None)
        options = _options(where, login, f"mqcore from {where.queue}")
        counts = gateway.report.counts
        self._session = Session(address, options, self._set_up, self._hear, self._fail, counts, on_message=self.take)
        self._subscription = Subscription(
            where.queue, lambda: gateway.max_in_flight, lambda: bool(self.open), slowly=starts_slowly
        )
        loop = asyncio.get_running_loop()
        super().__init__(where, gateway, self._subscription, loop, HELD_BYTES // gateway.processes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._pausing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def figures(self) -> dict[str, Any]:
        return {
            **self._outlet.publishing.figures(),
            "connections": int(self._session.connection is not None)
            + int(self._outlet.publishing.session.connection is not None),
            "reconnects": self._session.reconnects + self._outlet.publishing.session.reconnects,
            "deliveries": {"false": self.first_deliveries, "true": self.redeliveries},
            "acks": self.acks,
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
        self._watching = asyncio.create_task(self._watch())

    def _fail(self, error: Unreachable) -> None:
        self._gateway.fail(f"cannot read {self._where}: {error}")

    async def _set_up(self, connection: Connection) -> None:
        self.link = connection
        await self._subscription.begin(connection)

    async def _until_empty(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(max(EMPTY_AFTER - (time.monotonic() - last), 0.01))
            now = time.monotonic()
            last = max(last, self.last)
            connection = self._session.connection
            if self.open or connection is None or now < last + EMPTY_AFTER:
                last = max(last, now - EMPTY_AFTER / 2)
                continue
            with contextlib.suppress(BrokerError):
                if await count_messages(connection, self._where.queue) == 0 and not self.open:
                    self._gateway.drain()
                    return
            last = time.monotonic()

    async def _watch(self) -> None:
        """A queue that is deleted, and made again at once, may keep us as its consumer without a word, and its channel in the
        broker takes what it gives us for what it gave before: nothing comes any more. Another connection gets it all."""
        pause = FORGOTTEN_AFTER
        waited = 0
        while True:
            before = self._deliveries
            await asyncio.sleep(pause)
            if self._deliveries != before:
                pause = FORGOTTEN_AFTER
            waiting = await self._count_waiting()
            if waiting and waited and self._deliveries == before:
                pause, waiting = min(2 * pause, MOST_FORGOTTEN), 0
                self._session.renew(f"nothing comes of {self._where.queue}, in which {waited} messages wait")
            waited = waiting if self._deliveries == before else 0

    @property
    def _deliveries(self) -> int:
        return self.first_deliveries + self.redeliveries

    async def _count_waiting(self) -> int:
        """Messages that could be here, where there is none."""
        connection = self._session.connection
        if connection is not None and self._subscription.is_consuming and not self.open:
            with contextlib.suppress(BrokerError):
                return await count_messages(connection, self._where.queue)
        return 0

    def stop(self) -> None:
        """No more is taken. What comes until the broker has heard of that goes back."""
        self.is_stopped = True
        self._stopped.set()
        self._subscription.suspend()
        for task in (self._pausing, self._watching):
            if task is not None:
                task.cancel()

    async def end(self) -> None:
        """All that was offered is settled: what the broker gave us beside that goes back to it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GOODBYE)
        for task in (*self._tasks, self._pausing, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._subscription.close()
        connection = self._session.connection
        if connection is not None:
            for delivery in self.open:
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
        self.lose()
        self._outlet.publishing.wake()

    # What becomes of few messages

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def turn_away(self, connection: Connection, delivery: Delivery, reason: str) -> None:
        self._begin(self._turn_away(connection, delivery, reason))

    async def _turn_away(self, connection: Connection, delivery: Delivery, reason: str) -> None:
        try:
            properties = read_properties(delivery)
        except Unreadable:
            properties = Properties()
        if await self._returns.turn_away(delivery, properties, reason, lambda: delivery in self.open):
            self._gateway.turn_away(1, False)
            self.acknowledge(connection, delivery)

    def put_off(self, incoming: Incoming, seconds: float) -> None:
        self._begin(self._put_off(incoming, seconds))

    async def _put_off(self, incoming: Incoming, seconds: float) -> None:
        delivery = incoming.delivery
        if await self._returns.put_off(delivery, incoming.letter.message, seconds, lambda: delivery in self.open):
            self._gateway.count_put_off(1)
            self.ack(incoming, False)

    def tell_result(self, incoming: Incoming, verdict: Verdict) -> None:
        self._begin(self._tell_result(incoming, verdict))

    async def _tell_result(self, incoming: Incoming, verdict: Verdict) -> None:
        results = results_of(incoming.letter.mail, verdict, time.time())
        await self._returns.tell_result(incoming.letter, results)
        self.ack(incoming, True)

    async def put_back(self, incoming: Incoming, verdict: Verdict) -> PutBack:
        if verdict.unavailable:
            self._pause()
            return PutBack.LEFT
        how = await self._returns.put_back(incoming.letter, verdict)
        incoming.is_put_back = True
        incoming.comes_again = how is PutBack.RETRIED
        return how

    def leave_soon(self, incoming: Incoming) -> None:
        asyncio.get_running_loop().call_later(LEFT_FOR, self._leave, incoming)

    def _leave(self, incoming: Incoming) -> None:
        """The queue may give it to somebody else."""
        if not (incoming.is_void or self.is_stopped):
            incoming.connection.protocol.nack(incoming.delivery)
            incoming.connection.flush_soon()
            self.forget(incoming.connection, incoming.delivery)

    # When there is no next owner

    def _pause(self) -> None:
        if self._pausing is None and not self.is_stopped:
            log.warning("there is no next owner for mails of %s: none are taken until there is", self._where)
            self._subscription.suspend()
            self._pausing = asyncio.create_task(self._wait_for_owner())

    async def _wait_for_owner(self) -> None:
        await self._gateway.sink.ready()
        self._pausing = None
        if not self.is_stopped:
            self._subscription.restart()
            self.counts_acks = True


def _options(where: AmqpUrl, login: tuple[str, str], name: str) -> ClientOptions:
    return ClientOptions(
        user=login[0],
        password=login[1],
        vhost=where.vhost,
        heartbeat=where.heartbeat,
        properties={"product": "mqcore", "connection_name": name},
        max_body=MAX_BODY,
    )
