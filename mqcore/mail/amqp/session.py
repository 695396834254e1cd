"""Keeps a connection to a broker up."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from ...amqp.client import ChannelClosed, ClientOptions, ConnectionClosed, Event
from ...amqp.errors import NOT_FOUND
from ..report import Counts
from .connection import Address, BrokerError, Connection, Unreachable, Writable

PATIENCE = 30.0
"""Seconds: for so long a broker may be away at the start, and a queue later."""
FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0

log = logging.getLogger(__name__)


def delays(first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> Iterator[float]:
    """Seconds before each try, twice as many from one to the next; up to half of it is left to chance, as many clients lose
    their broker at once."""
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, longest)


class Session:
    """One connection after the other.

    `set_up` makes each ready: opens channels, declares, consumes. `on_event` hears what its connection tells, and after
    `ConnectionClosed` there will be another one, unless `on_failed` is called: the broker refuses, and that will not change.
    A channel that the broker closes is not opened alone: the connection is made anew.
    """

    def __init__(
        self,
        address: Address,
        options: ClientOptions,
        set_up: Callable[[Connection], Awaitable[None]],
        on_event: Callable[[Event | Writable], object],
        on_failed: Callable[[Unreachable], object],
        counts: Counts,
        *,
        on_message: Callable[[Any], object] | None = None,
    ) -> None:
        """`on_message`: hears deliveries and outcomes in place of `on_event`."""
        self.connection: Connection | None = None
        """None while there is none that is ready."""
        self.reconnects = 0
        self._address = address
        self._options = options
        self._set_up = set_up
        self._on_event = on_event
        self._on_message = on_message or on_event
        self._on_failed = on_failed
        self._counts = counts
        self._lost = asyncio.Event()
        self._spoiled = ""
        """Why the connection that is being made is of no use."""
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises Unreachable when there is no connection after `PATIENCE`, or the broker refuses."""
        await self._connect(patient=False)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()

    def renew(self, reason: str) -> None:
        """Leave the connection, and make another one."""
        connection = self.connection
        if connection is None:
            self._spoiled = reason  # it is just being made
        else:
            self._lose(reason)
            connection.abort(reason)

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            self._lost.clear()
            try:
                await self._connect(patient=True)
            except Unreachable as error:
                self._on_failed(error)
                return
            self.reconnects += 1
            self._counts.reconnects += 1
            log.info("connected to %s again", self._address)

    async def _connect(self, *, patient: bool) -> None:
        """Patient: for ever, and a queue that is not there may come back."""
        time = asyncio.get_running_loop().time
        give_up = time() + PATIENCE
        said = ""
        for delay in delays():
            try:
                await self._connect_once()
                return
            except Unreachable as error:
                is_missing = error.code == NOT_FOUND
                is_late = time() + delay > give_up and (is_missing or not patient)
                if is_late or (error.final and not (is_missing and patient)):
                    raise
                if str(error) != said:
                    said = str(error)
                    log.warning("no connection to %s; trying again", said)
            await asyncio.sleep(delay)

    async def _connect_once(self) -> None:
        self._spoiled = ""
        connection = await Connection.open(self._address, self._options, self._hear, self._on_message)
        try:
            await self._set_up(connection)
        except BrokerError as error:
            connection.abort(str(error))
            raise Unreachable(f"{self._address}: {error}", error) from error
        except BaseException:
            connection.abort("given up")
            raise
        if self._spoiled or not connection.is_open:
            connection.abort(self._spoiled)
            raise Unreachable(f"{self._address}: {self._spoiled or 'the connection broke'}")
        self._lost.clear()
        self.connection = connection

    def _hear(self, event: Event | Writable) -> None:
        connection = self.connection
        if isinstance(event, ConnectionClosed):
            self._lost.set()
            if connection is not None:
                self._lose(event.text)
        elif isinstance(event, ChannelClosed) and event.by_broker and connection is not None:
            self._lose(event.text)
            connection.abort(event.text)
        self._on_event(event)

    def _lose(self, reason: str) -> None:
        self.connection = None
        log.warning("lost the connection to %s: %s", self._address, reason)
