"""Dispatch: messages through 1, 3, 10 and 30 plugins, none of which takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import blinker
import pluggy
import pytest
from aiosignal import Signal
from building import build
from subjects import (
    HOOK,
    PASSES_ON,
    PASSES_ON_LATER,
    PASSES_ON_WITH_NONE,
    Subject,
    functions_of,
    messages,
    subject,
)

PLUGINS = [1, 3, 10, 30]
COUNT = 1_000
ROUNDS = 100

Functions = Iterable[Callable[..., Any]]


class Manager(pluggy.PluginManager):
    """pluggy's, for plugins whose functions carry no mark: the very same functions are called."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Take the hook by its name."""
        return {} if name == HOOK else None


def pluggy_hook(functions: Functions, *, firstresult: bool) -> Callable[..., Any]:
    """pluggy's caller of these functions."""

    class Spec:
        @pluggy.HookspecMarker("bench")(firstresult=firstresult)
        def mq_smtp_in_message(self, context: Any, message: Any) -> Any:
            """The hook."""

    manager = Manager("bench")
    manager.add_hookspecs(Spec)
    for number, function in enumerate(functions):
        manager.register(SimpleNamespace(**{HOOK: function}), f"{number:04}-plugin")
    caller: Callable[..., Any] = getattr(manager.hook, HOOK)
    return caller


def python_loop(pairs: tuple[tuple[Callable[..., Any], Any], ...], taken: list[Any]) -> None:
    """What people write by hand."""
    for message in taken:
        for function, context in pairs:
            if function(context, message):
                break


def run_pluggy(caller: Callable[..., Any], context: Any, taken: list[Any]) -> None:
    """pluggy takes arguments by name, and knows no context of each plugin's own."""
    for message in taken:
        caller(context=context, message=message)


def run_blinker(signal: blinker.Signal, context: Any, taken: list[Any]) -> None:
    """blinker calls all receivers, in no order, with the sender first."""
    for message in taken:
        signal.send(context, message=message)


def run_each(run: Callable[[Any], Any], taken: list[Any]) -> None:
    """One call from Python for each message."""
    for message in taken:
        run(message)


def peers_of(made: Subject, count: int, taken: list[Any]) -> dict[str, Callable[[], Any]]:
    """The others, over the same functions. pluggy's firstresult ends at the first result that is not None, so there the
    functions return None in place of False."""
    listed = pluggy_hook(made.functions, firstresult=False)
    first = pluggy_hook(functions_of(PASSES_ON_WITH_NONE, count), firstresult=True)
    context = made.contexts[0]
    signal = blinker.Signal()
    for function in made.functions:
        signal.connect(function, weak=False)
    return {
        "Python loop": lambda: python_loop(made.pairs, taken),
        "pluggy (list)": lambda: run_pluggy(listed, context, taken),
        "pluggy (firstresult)": lambda: run_pluggy(first, context, taken),
        "blinker": lambda: run_blinker(signal, context, taken),
    }


@pytest.mark.parametrize("count", PLUGINS)
def test_run_many(loop: Any, against: Callable[..., None], count: int) -> None:
    """A list of messages in one call."""
    with subject(loop, PASSES_ON, count) as made:
        taken = messages(COUNT)
        floor = build("_floor").Floor(made.functions, made.contexts)
        contenders = {
            "floor": lambda: floor.run_many(taken),
            "mqcore": lambda: made.hook.run_many(taken),
            **peers_of(made, count, taken),
        }
        against("dispatch", f"run_many, {plugins(count)}", contenders, rounds=ROUNDS, count=COUNT)


@pytest.mark.parametrize("count", PLUGINS)
def test_run(loop: Any, against: Callable[..., None], count: int) -> None:
    """One call for each message."""
    with subject(loop, PASSES_ON, count) as made:
        taken = messages(COUNT)
        floor = build("_floor").Floor(made.functions, made.contexts)
        contenders = {
            "floor": lambda: run_each(floor.run, taken),
            "mqcore": lambda: run_each(made.hook.run, taken),
            **peers_of(made, count, taken),
        }
        against("dispatch", f"run, {plugins(count)}", contenders, rounds=ROUNDS, count=COUNT)


async def await_each(call: Callable[[Any], Any], taken: list[Any]) -> None:
    """One await for each message."""
    for message in taken:
        await call(message)


async def one_task_each(call: Callable[[Any], Any], taken: list[Any]) -> None:
    """A task for each message, as many servers have it."""
    for task in [asyncio.create_task(call(message)) for message in taken]:
        await task


def to_its_end(coroutine: Any) -> None:
    """Run a coroutine that never waits, without a loop, whose start and stop would be measured too."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


@pytest.mark.parametrize("count", PLUGINS)
def test_await(loop: Any, against: Callable[..., None], count: int) -> None:
    """`await hook(message)` in one coroutine. aiosignal and the async chain await functions that return at once."""
    later = functions_of(PASSES_ON_LATER, count)
    with subject(loop, PASSES_ON, count) as made:
        taken = messages(COUNT)
        floor = build("_floor").Floor(made.functions, made.contexts)
        pairs = tuple(zip(later, made.contexts, strict=True))
        signal: Any = Signal(made)
        signal.extend(later)
        signal.freeze()

        async def chain(message: Any) -> None:
            for function, context in pairs:
                if await function(context, message):
                    break

        contenders = {
            "floor": lambda: run_each(floor.run, taken),
            "mqcore": lambda: to_its_end(await_each(made.hook, taken)),
            "async chain": lambda: to_its_end(await_each(chain, taken)),
            "aiosignal": lambda: to_its_end(await_each(lambda each: signal.send(made.contexts[0], each), taken)),
            "a task per message": lambda: loop.run_until_complete(one_task_each(chain, taken)),
        }
        against("dispatch", f"await, {plugins(count)}", contenders, rounds=ROUNDS, count=COUNT)


def plugins(count: int) -> str:
    """So many plugins, in words."""
    return "1 plugin" if count == 1 else f"{count} plugins"
