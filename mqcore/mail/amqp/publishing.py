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

REFUSED_FOR = 5.0
"""Seconds: a queue that refuses for so long is tried on another connection. Mostly it is full. But a channel of RabbitMQ before
3.13 that first publishes when the leader of a queue is dead, and no other is known yet, refuses until its node is back."""
UNCONFIRMED_FOR = 60.0
LONGEST_UNCONFIRMED = 3600.0
"""Seconds: what has no outcome for so long, or twice that, is waited for on another connection; after twice as long when that
was no use, as each time makes copies, where the broker is only slow."""

_TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")

MOMENT = 0.05
"""Seconds until it is looked again whether nothing is on its way."""

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
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        self._is_leaving = False
        """Nothing more is published on this connection, and another one follows when nothing is on its way."""
        self._looking: asyncio.TimerHandle | None = None
        self._patience = UNCONFIRMED_FOR
        self._acks_before = 0
        """When it was out of patience last."""
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
        self.is_blocked = self._is_leaving = False
        self.begin_channel(await connection.open_channel(confirms=True))
        self._began = self._loop.time()
        self._look(0)
        self._loop.call_soon(self.wake)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await self.session.close()

    def _hear(self, event: Event | Writable) -> None:
        self.look_again()
        if isinstance(event, Blocked | Unblocked | ConnectionClosed):
            self.is_blocked = isinstance(event, Blocked)
            self._is_leaving = self._is_leaving and not isinstance(event, ConnectionClosed)
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
        if connection is None or self.is_blocked or self._is_leaving or not connection.is_writable:
            return None
        return connection

    async def change(self) -> None:
        self._news = self._news or self._loop.create_future()
        await asyncio.shield(self._news)

    # A connection that lives, and is of no use

    def refused(self, since: float) -> None:
        """A queue has refused, and taken nothing `since` then, by the loop's clock."""
        now = self._loop.time()
        refused_for = now - since
        if refused_for >= REFUSED_FOR and now - self._began >= max(REFUSED_FOR, refused_for / 2) and not self._is_leaving:
            self._is_leaving = True
            self.look_again()
            self._leave(now + REFUSED_FOR, f"a queue has refused what was published for {refused_for:.0f} s")

    def _leave(self, give_up: float, reason: str) -> None:
        if not self._is_leaving:
            return  # it was lost meanwhile
        if self.unconfirmed and self._loop.time() < give_up:
            self._loop.call_later(MOMENT, self._leave, give_up, reason)
        else:
            self.session.renew(reason)

    def _look(self, seen: int) -> None:
        """`seen`: the oldest publish that was on its way when this was done last; 0: none."""
        if self._looking is not None:
            self._looking.cancel()
        if self.acks != self._acks_before:
            self._patience = UNCONFIRMED_FOR
        oldest = self.first if self.unconfirmed and not self.is_blocked else 0
        if oldest and oldest == seen:
            reason = f"the broker has left what was published without an outcome for {self._patience:g} s"
            self._patience, self._acks_before = min(2 * self._patience, LONGEST_UNCONFIRMED), self.acks
            self.session.renew(reason)
        else:
            self._looking = self._loop.call_later(self._patience, self._look, oldest)
