"""What plugins hold, as an operator sees it: never the content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from .. import Dispatcher, Message
from ..mail._mail import Mail
from ..stats import Held

PORTION = 1000
"""Held messages that are looked at in one tick: about half a millisecond."""
FEW = 50
"""Steps that are ended in one tick."""
LONGEST = 200
"""Characters of what a client chose."""


def id_of(message: Message) -> str:
    """By which it can be cancelled: that of the mail, as in its Received line; before there is a mail, of its connection."""
    return message.origin.id if isinstance(message, Mail) and message.origin is not None else f"{id(message):x}"


def describe(held: Held) -> dict[str, Any]:
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
        "id": id_of(message),
        "plugin": held.plugin,
        "hook": held.hook,
        "age": round(held.age, 3),
        **{name: text and text[:LONGEST] for name, text in known.items()},
    }


class HeldMessages:
    """Those of one dispatcher. However many they are, no tick of the loop is long because of them."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._scanning = asyncio.Lock()

    async def oldest(self, limit: int, plugin: str | None = None, older: float = 0.0) -> list[Held]:
        """At most `limit`, the oldest first, of those that one plugin holds, and for so many seconds or longer."""
        if plugin is None:
            return [held for held in self._dispatcher.held(limit) if held.age >= older]
        found: list[Held] = []
        async with aclosing(self._scan(PORTION, older, limit, plugin)) as portions:
            async for portion in portions:
                found += portion
        return sorted(found, key=_age, reverse=True)[:limit]

    async def cancel(self, id: str) -> int:
        """End the step of the message with this id. How many there were."""
        count = 0
        async with aclosing(self._scan(PORTION, match=lambda message: id_of(message) == id)) as portions:
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


def _age(held: Held) -> float:
    return held.age
