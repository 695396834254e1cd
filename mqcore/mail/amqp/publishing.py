"""A connection that publishes, and what is on its way there: whoever publishes is told the outcome of each message."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from ...amqp.client import Blocked, ChannelClosed, ClientOptions, ConnectionClosed, Event, Outcome, Unblocked
from ..report import Counts
from .connection import Address, Connection, Unreachable, Writable
from .session import Session

_TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


NOT_BEGUN = {"connections": 0, "reconnects": 0, "confirms": {}, "unconfirmed": 0, "blocked": False}
"""Its figures, before there is one."""


class Group:
    """What was published together: the outcome of each; None if nobody waits for it any more."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = count

    def take(self, index: int, outcome: Outcome | None) -> None:
        self.outcomes[index] = outcome
        self._left -= 1
        if self._left == 0 and not self.done.done():
            self.done.set_result(None)


class Publishing:
    """One channel of a session, in confirm mode, after `prepare` has seen to it that what is published on goes somewhere."""

    def __init__(
        self,
        address: Address,
        options: ClientOptions,
        prepare: Callable[[Connection], Awaitable[None]],
        on_failed: Callable[[Unreachable], object],
        counts: Counts,
        most: int,
    ) -> None:
        """`most`: octets that a message may have."""
        self.most = most
        """It may become less, as the broker says what it takes only when it closes the channel."""
        self.is_blocked = False
        self.on_change: Callable[[], object] = tuple
        """Called when the broker takes nothing, or takes more again."""
        self.session = Session(address, options, self._set_up, self._hear, on_failed, counts, on_message=self._take)
        self._prepare = prepare
        self._counts = counts
        self._pending: dict[int, tuple[Callable[[Any, Outcome | None], object], Any]] = {}
        self._outcomes: Counter[str] = Counter()
        self._news: asyncio.Future[None] | None = None
        self._channel = 0

    def figures(self) -> dict[str, Any]:
        return {
            "connections": int(self.session.connection is not None),
            "reconnects": self.session.reconnects,
            "confirms": dict(self._outcomes),
            "unconfirmed": len(self._pending),
            "blocked": self.is_blocked,
        }

    async def _set_up(self, connection: Connection) -> None:
        await self._prepare(connection)
        self.is_blocked = False
        self._channel = await connection.open_channel(confirms=True)
        asyncio.get_running_loop().call_soon(self.wake)

    def _hear(self, event: Event | Writable) -> None:
        if isinstance(event, Blocked | Unblocked | ConnectionClosed):
            self.is_blocked = isinstance(event, Blocked)
            self.on_change()
            self.wake()
        elif isinstance(event, ChannelClosed):
            found = _TOO_LARGE.search(event.text)
            if found is not None:  # it is not announced
                self.most = min(self.most, int(found[1]))
        elif isinstance(event, Writable):
            self.wake()

    def _take(self, outcome: Outcome) -> None:
        kind = outcome.kind
        self._outcomes[kind] += 1
        if kind != "ack":
            self._counts.nacked += kind == "nack"
            self._counts.returned += kind == "returned"
        waiting = self._pending.pop(outcome.tag, None)
        if waiting is not None:
            take, key = waiting
            take(key, outcome)

    def let_go(self) -> None:
        """Nobody waits any more for what is on its way."""
        pending, self._pending = self._pending, {}
        for take, key in pending.values():
            take(key, None)

    def wake(self) -> None:
        """Whoever waits for `change` is to look anew."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        self._news = None

    @property
    def connection(self) -> Connection | None:
        """One that can be published on now."""
        connection = self.session.connection
        return None if connection is None or self.is_blocked or not connection.is_writable else connection

    async def change(self) -> None:
        self._news = self._news or asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    def publish(
        self,
        connection: Connection,
        exchange: str,
        queue: str,
        properties: bytes,
        body: bytes,
        take: Callable[[Any, Outcome | None], object],
        key: object,
    ) -> None:
        """`take(key, outcome)` is called later. Raises ValueError for properties that are too large."""
        self._pending[connection.publish(self._channel, exchange, queue, properties, body)] = take, key
