"""A connection that publishes, and what is on its way there: whoever publishes is told the outcome of each message."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from ...amqp.client import Blocked, ChannelClosed, ClientOptions, ConnectionClosed, Event, Outcome, Unblocked
from ..report import Counts
from ._outcomes import Outcomes
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


class Publishing(Outcomes):
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
        """`most`: octets that a message may have. It may become less, as the broker says what it takes only when it closes the
        channel."""
        super().__init__(counts, most)
        self.is_blocked = False
        self.on_change: Callable[[], object] = tuple
        """Called when the broker takes nothing, or takes more again."""
        self.session = Session(address, options, self._set_up, self._hear, on_failed, counts, on_message=self.take)
        self._prepare = prepare
        self._news: asyncio.Future[None] | None = None

    def figures(self) -> dict[str, Any]:
        return {
            "connections": int(self.session.connection is not None),
            "reconnects": self.session.reconnects,
            "confirms": self.outcomes,
            "unconfirmed": self.unconfirmed,
            "blocked": self.is_blocked,
        }

    async def _set_up(self, connection: Connection) -> None:
        await self._prepare(connection)
        self.is_blocked = False
        self.begin_channel(await connection.open_channel(confirms=True))
        asyncio.get_running_loop().call_soon(self.wake)

    def _hear(self, event: Event | Writable) -> None:
        self.look_again()
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
