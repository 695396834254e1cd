"""What plugins hold, as an operator sees it: never the content."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from operator import attrgetter
from typing import Any

from .. import Dispatcher, Message
from ..mail._mail import Mail
from ..stats import Held

PORTION = 500
"""Held messages that are looked at in one tick: some tenths of a millisecond."""
FEW = 50
"""Steps that are ended in one tick."""
LONGEST = 200
"""Characters of what a client chose."""


class HeldMessages:
    """Those of one dispatcher. However many they are, no tick of the loop is long because of them."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._scanning = asyncio.Lock()
        self._numbers: dict[int, tuple[weakref.ref[Message], str]] = {}
        """Of messages without an id, by their address: it is another message's when one is gone, and the number is not."""
        self._count = itertools.count(1)

    def id_of(self, message: Message) -> str:
        """By which it can be cancelled: that of the mail, as in its Received line; before there is a mail, of its connection;
        of messages that are no mails a number. No other message ever has it."""
        known = self._known_id(message)
        if known is None:
            key, known = id(message), f"message-{next(self._count)}"
            self._numbers[key] = weakref.ref(message, lambda _: self._numbers.pop(key, None)), known
        return known

    def _known_id(self, message: Message) -> str | None:
        if isinstance(message, Mail) and message.origin is not None:
            return str(message.origin.id)
        return self._numbers.get(id(message), (None, None))[1]

    def describe(self, held: Held) -> dict[str, Any]:
        """As plain data."""
        message = held.message
        known: dict[str, Any] = {"peer": None, "envelope": None, "recipient": None}
        if isinstance(message, Mail):
            known = {
                "peer": message.connection.peer if message.connection is not None else None,
                "envelope": message.envelope,
                "recipient": message.recipient,
            }
        return {
            "id": self.id_of(message),
            "plugin": held.plugin,
            "hook": held.hook,
            "age": round(held.age, 3),
            **{name: text and text[:LONGEST] for name, text in known.items()},
        }

    async def oldest(self, limit: int, plugin: str | None = None, older: float = 0.0) -> list[Held]:
        """At most `limit`, the oldest first, of those that one plugin holds, and for so many seconds or longer."""
        if plugin is None and limit <= PORTION:
            return [held for held in self._dispatcher.held(limit) if held.age >= older]
        runs: list[list[Held]] = []
        async with aclosing(self._scan(PORTION, older, limit, plugin)) as portions:
            async for portion in portions:
                portion.sort(key=_age, reverse=True)
                if runs and portion[0].age <= runs[-1][-1].age:  # mostly: those that share a hold_timeout come in this order
                    runs[-1] += portion
                else:
                    runs.append(portion)
        found: list[Held] = []
        merged = itertools.islice(heapq.merge(*runs, key=_age, reverse=True), limit)
        while portion := list(itertools.islice(merged, PORTION)):
            found += portion
            await asyncio.sleep(0)
        return found

    async def cancel(self, id: str) -> int:
        """End the step of the message with this id. How many there were."""
        count = 0
        async with aclosing(self._scan(PORTION, match=lambda message: self._known_id(message) == id)) as portions:
            async for portion in portions:
                count += self._cancel(portion)
        return count

    async def cancel_of(self, plugin: str, older: float = 0.0) -> int:
        """End the steps that a plugin holds, for so many seconds or longer. How many there were."""
        count = 0
        async with aclosing(self._scan(FEW, older, plugin=plugin)) as portions:
            async for portion in portions:
                count += self._cancel(portion)
        return count

    def _cancel(self, portion: list[Held]) -> int:
        # One that ends may end others, which are in other steps by then: those who wait for them see to that.
        return sum(held.message.holder == held.plugin and self._dispatcher.cancel(held.message) for held in portion)

    async def _scan(
        self,
        size: int,
        older: float = 0.0,
        most: int = -1,
        plugin: str | None = None,
        match: Callable[[Message], bool] | None = None,
    ) -> AsyncGenerator[list[Held], None]:
        async with self._scanning:  # there is one scan of a dispatcher at a time
            self._dispatcher._begin_scan(older, most)
            while (portion := self._dispatcher._scan(size, plugin, match)) is not None:
                if portion:
                    yield portion
                await asyncio.sleep(0)


_age = attrgetter("age")
