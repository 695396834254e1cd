"""Streams: many messages through 10 plugins that pass them on, from sources of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from subjects import PASSES_ON, Subject, messages, subject

import mqcore

COUNT = 2_000
ROUNDS = 60
PLUGINS = 10


async def ready(items: Iterable[Any]) -> AsyncIterator[Any]:
    """An async source that never waits."""
    for item in items:
        yield item


async def waiting(items: Iterable[Any]) -> AsyncIterator[Any]:
    """An async source that waits for the loop before each of its messages."""
    for item in items:
        await asyncio.sleep(0)
        yield item


async def exhaust(iterator: AsyncIterator[Any]) -> None:
    """A bare `async for`."""
    async for _ in iterator:
        pass


async def in_portions(hook: mqcore.Hook, taken: list[Any]) -> AsyncIterator[Any]:
    """What people would write by hand where nothing is held."""
    for start in range(0, len(taken), 100):
        portion = taken[start : start + 100]
        for pair in zip(portion, hook.run_many(portion), strict=True):
            yield pair


async def by_hand(run: Callable[[Any], Any], source: AsyncIterator[Any]) -> None:
    """A loop of one's own, where nothing is held and nobody wants the outcomes."""
    async for message in source:
        run(message)


async def yielding(run: Callable[[Any], Any], source: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """What people would write by hand for an async source where nothing is held."""
    async for message in source:
        yield message, run(message)


def run_then_iterate(loop: Any, made: Subject, taken: list[Any], iterator: AsyncIterator[Any]) -> None:
    """The floor: the same messages in one call, and as many rounds of an `async for`."""
    made.hook.run_many(taken)
    loop.run_until_complete(exhaust(iterator))


@pytest.mark.parametrize("ordered", [False, True])
def test_sync_source(loop: Any, against: Callable[..., None], *, ordered: bool) -> None:
    """A list of messages."""
    with subject(loop, PASSES_ON, PLUGINS) as made:
        taken = messages(COUNT)
        pairs = [(message, mqcore.CONTINUE) for message in taken]
        contenders = {
            "run_many + async for": lambda: run_then_iterate(loop, made, taken, ready(pairs)),
            "mqcore": lambda: loop.run_until_complete(exhaust(made.hook.stream(taken, ordered=ordered))),
            "async generator": lambda: loop.run_until_complete(exhaust(in_portions(made.hook, taken))),
        }
        case = "stream, 10 plugins" + (", ordered" if ordered else "")
        against("dispatch", case, contenders, rounds=ROUNDS, count=COUNT)


@pytest.mark.parametrize("source", [ready, waiting])
def test_async_source(loop: Any, against: Callable[..., None], source: Callable[[Any], AsyncIterator[Any]]) -> None:
    """Such a source is read by a task of its own: where it waits, that is one more step of a task for each message."""
    with subject(loop, PASSES_ON, PLUGINS) as made:
        taken = messages(COUNT)
        contenders = {
            "source + run_many": lambda: run_then_iterate(loop, made, taken, source(taken)),
            "mqcore": lambda: loop.run_until_complete(exhaust(made.hook.stream(source(taken)))),
            "loop by hand": lambda: loop.run_until_complete(by_hand(made.hook.run, source(taken))),
            "async generator": lambda: loop.run_until_complete(exhaust(yielding(made.hook.run, source(taken)))),
        }
        against("dispatch", f"stream, a source that {WHAT[source]}", contenders, rounds=ROUNDS, count=COUNT)


WHAT = {ready: "is always ready", waiting: "waits for the loop"}
