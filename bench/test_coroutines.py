"""Coroutine hooks, called on a loop that runs: one that never waits, and one that waits once."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Any

from building import build
from subjects import PASSES_ON_LATER, Subject, messages, subject

COUNT = 1_000
EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


def send_each(function: Callable[..., Any], taken: list[Any]) -> None:
    """What the interpreter takes for the coroutine alone."""
    for message in taken:
        try:
            function(None, message).send(None)
        except StopIteration:
            continue


async def run_each(run: Callable[[Any], Any], taken: list[Any]) -> None:
    """One call for each message."""
    for message in taken:
        run(message)


async def tasks_for_each(loop: Any, function: Callable[..., Any], taken: list[Any]) -> None:
    """A bare task for each; where CPython can, one that starts at once."""
    for message in taken:
        task = asyncio.Task(function(None, message), loop=loop, **EAGER)
    await task


def test_never_waits(loop: Any, against: Callable[..., None]) -> None:
    """As where the answer is in a cache."""
    with subject(loop, PASSES_ON_LATER, 1) as made:
        taken = messages(COUNT)
        function = made.functions[0]
        contenders = {
            "coroutine alone": lambda: send_each(function, taken),
            "mqcore": lambda: loop.run_until_complete(run_each(made.hook.run, taken)),
            "bare task": lambda: loop.run_until_complete(tasks_for_each(loop, function, taken)),
        }
        against("dispatch", "a coroutine hook that never waits", contenders, rounds=100, count=COUNT)


def test_never_waits_in_c(loop: Any, against: Callable[..., None]) -> None:
    """Beside what the interpreter takes of that: the coroutine made and sent to from C, as asyncio asks for it."""
    tasks = asyncio.tasks._current_tasks if sys.version_info < (3, 14) else asyncio.tasks._swap_current_task  # type: ignore[attr-defined]
    steps = build("_floor").coroutine_steps

    async def floor() -> None:
        steps(function, taken, loop, asyncio.current_task(), tasks)

    with subject(loop, PASSES_ON_LATER, 1) as made:
        taken = messages(COUNT)
        function = made.functions[0]
        contenders = {
            "floor": lambda: loop.run_until_complete(floor()),
            "mqcore": lambda: loop.run_until_complete(run_each(made.hook.run, taken)),
        }
        against("dispatch", "a coroutine hook that never waits, beside C", contenders, rounds=100, count=COUNT)


def test_waits_once(loop: Any, against: Callable[..., None]) -> None:
    """Each for a future of its own; all of them wait at once."""
    futures: list[asyncio.Future[None]] = []
    taken = messages(COUNT)

    async def waits(context: Any, message: Any) -> bool:
        future = loop.create_future()
        futures.append(future)
        await future
        return False

    def finish() -> None:
        for future in futures:
            future.set_result(None)
        futures.clear()

    async def bare() -> None:
        tasks = [loop.create_task(waits(None, message)) for message in taken]
        await asyncio.sleep(0)
        finish()
        await tasks[-1]

    async def ours() -> None:
        ended = loop.create_future()
        for message in taken[:-1]:
            made.hook.run(message)
        made.hook.run(taken[-1], done=lambda message, outcome: ended.set_result(outcome))
        finish()
        await ended

    made = Subject(loop, (waits,))
    contenders = {
        "task awaiting a future": lambda: loop.run_until_complete(bare()),
        "mqcore": lambda: loop.run_until_complete(ours()),
    }
    try:
        against("dispatch", "a coroutine hook that waits once", contenders, rounds=100, count=COUNT, before=gc.collect)
    finally:
        made.dispatcher.close()
        made.plugins.close()
