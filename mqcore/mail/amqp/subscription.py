"""The consumer of a queue, on one connection after the other: how many messages it has at once, and when it has none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ...amqp.errors import StateError
from .connection import BrokerError, Connection

TAG = "mqcore"
RAMP = (1, 10, 100)
"""How many it may have at once, at first, after a connection was lost or a process ended: should a message have been the
reason, few others are there with it, and few come again."""
MOST = 65_535
"""As AMQP has it."""


class Subscription:
    """RabbitMQ applies another number to consumers that begin after that: so one ends, what it has is waited for, and another
    begins."""

    def __init__(self, queue: str, most: Callable[[], int], holds: Callable[[], bool], *, slowly: bool) -> None:
        """`most`: how many it may have in the end. `holds`: whether it has any. `slowly`: whether to begin as after a loss."""
        self.connection: Connection | None = None
        self._queue = queue
        self._most = most
        self._holds = holds
        self._level = 0 if slowly else len(RAMP)
        self._is_wanted = True
        self._prefetch = 0
        """Of the consumer that there is; 0: there is none."""
        self._acks = 0
        self._channel = 0
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._changing = asyncio.Lock()
        self._steering: asyncio.Task[None] | None = None

    @property
    def is_consuming(self) -> bool:
        return self._prefetch > 0

    @property
    def _size(self) -> int:
        """How many it is to have."""
        if not self._is_wanted:
            return 0
        most = min(self._most(), MOST)
        return min(RAMP[self._level], most) if self._level < len(RAMP) else most

    async def begin(self, connection: Connection) -> None:
        """On a new connection. Raises BrokerError."""
        self._steering = self._steering or asyncio.create_task(self._steer())
        async with self._changing:
            self._prefetch = 0
            self.connection = connection
            self._channel = await connection.open_channel()
            await self._consume(connection)

    def lose(self) -> None:
        """The connection is gone, and all that it had."""
        self.connection = None
        self._prefetch = self._level = self._acks = 0
        self._changed.set()

    def suspend(self) -> None:
        """Take no more."""
        self._is_wanted = False
        self._news.set()

    def restart(self) -> None:
        self._is_wanted = True
        self._level = self._acks = 0
        self._news.set()

    def drained(self) -> None:
        """It has nothing any more."""
        if not self._prefetch:
            self._news.set()

    def acked(self) -> bool:
        """Whether it wants to hear of the next one, too."""
        if self._level < len(RAMP):
            self._acks += 1
            if self._acks >= RAMP[self._level]:
                self._acks = 0
                self._level += 1
                self._news.set()
        return self._level < len(RAMP)

    async def ended(self) -> None:
        """Wait until there is no consumer."""
        while self._prefetch or self._changing.locked():
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        if self._steering is not None:
            self._steering.cancel()
            await asyncio.wait([self._steering])

    async def _steer(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            async with self._changing:
                if self.connection is not None:
                    with contextlib.suppress(BrokerError, StateError):  # then there will be another one
                        await self._adjust(self.connection)
            self._changed.set()

    async def _adjust(self, connection: Connection) -> None:
        if self._prefetch and self._prefetch != self._size:
            await connection.ask(self._channel, connection.protocol.cancel, TAG)
            self._prefetch = 0
        if not self._prefetch and not self._holds():
            await self._consume(connection)

    async def _consume(self, connection: Connection) -> None:
        if (size := self._size) and connection is self.connection:
            await connection.ask(self._channel, connection.protocol.set_qos, size)
            await connection.ask(self._channel, connection.protocol.consume, self._queue, TAG)
            if connection is self.connection:
                self._prefetch = size
