"""What the plugins of calls.py do: they import this file, so it is the same for each code that a reload brings."""

from __future__ import annotations

import asyncio
import itertools
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import mqcore

CONTINUES, COMPLETES, FAILS = {mqcore.CONTINUE}, {mqcore.COMPLETE}, {mqcore.FAIL}
SOON = 0.02  # seconds: the longest that something is held for which its time is not over

HOLDS: queue.SimpleQueue[Any] = queue.SimpleQueue()
"""What the threads give back."""
KEPT: list[mqcore.Hold] = []
"""Holds that nobody gives back, though somebody could."""
REFUSED: Counter[str] = Counter()
"""By thread, how often it came second where two gave back the same."""


class Calls(dict[str, "itertools.count[int]"]):
    """How often each plugin was called, by its own account. `next` of such a count is one call of C."""

    def __missing__(self, name: str) -> itertools.count[int]:
        return self.setdefault(name, itertools.count())

    def so_far(self) -> dict[str, int]:
        """The numbers, which a count shows but does not give."""
        return {name: int(repr(count)[6:-1]) for name, count in self.items()}


CALLS = Calls()


class Record:
    """One message: what is done to it, and how it ended. It does not refer to the message, which may have to go."""

    __slots__ = ("ends", "fault")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.ends: list[mqcore.Outcome] = []

    @property
    def right(self) -> bool:
        """Whether it ended once, as it had to."""
        return len(self.ends) == 1 and self.ends[0] in self.fault.outcomes


class Message(mqcore.Message):
    """With its record; None for one that all plugins let pass."""

    __slots__ = ("record",)

    def __init__(self, fault: Fault | None = None) -> None:
        self.record = fault and Record(fault)


class Fault(NamedTuple):
    act: Callable[[mqcore.Context, Message], Any]
    outcomes: set[mqcore.Outcome]


def given_back_by_threads() -> None:
    """A thread's whole work, until None comes."""
    while (job := HOLDS.get()) is not None:
        hold, how = job
        try:
            getattr(hold, how)()
        except mqcore.NotHeld:
            REFUSED[threading.current_thread().name] += 1


def by_timer(context: mqcore.Context, message: Message) -> Any:
    hold = context.hold(message)
    context.start_timer(random.uniform(0, SOON), hold.continue_)
    return mqcore.HOLD


def completed_by_timer(context: mqcore.Context, message: Message) -> Any:
    hold = context.hold(message)
    hold.start_timer(random.uniform(0, SOON), hold.complete)
    return hold


def failed_by_timer(context: mqcore.Context, message: Message) -> Any:
    context.start_timer(0.001, context.fail, message, "on purpose")
    return mqcore.HOLD


def raises_in_a_timer(context: mqcore.Context, message: Message) -> Any:
    hold = context.hold(message)
    hold.start_timer(0.001, raises, context, message)
    return hold


def by_a_thread(context: mqcore.Context, message: Message) -> Any:
    HOLDS.put((context.hold(message), random.choice(["continue_", "continue_", "complete"])))
    return mqcore.HOLD


def by_two_threads(context: mqcore.Context, message: Message) -> Any:
    hold = context.hold(message)
    HOLDS.put((hold, "continue_"))
    HOLDS.put((hold, "continue_"))
    return mqcore.HOLD


def before_it_returns(context: mqcore.Context, message: Message) -> Any:
    context.hold(message).continue_()
    return mqcore.HOLD


def again(context: mqcore.Context, message: Message) -> Any:
    return mqcore.RETRY if message.retries < 3 else False


def again_by_timer(context: mqcore.Context, message: Message) -> Any:
    if message.retries == 2:
        return False
    context.start_timer(0.001, context.retry, message)
    return True


def again_without_end(context: mqcore.Context, message: Message) -> Any:
    return mqcore.RETRY


def completes(context: mqcore.Context, message: Message) -> Any:
    return mqcore.COMPLETE


def raises(context: mqcore.Context, message: Message) -> Any:
    raise ValueError("on purpose")


def returns_nonsense(context: mqcore.Context, message: Message) -> Any:
    return "on purpose"


def forgotten(context: mqcore.Context, message: Message) -> Any:
    return context.hold(message)


def never_given_back(context: mqcore.Context, message: Message) -> Any:
    KEPT.append(context.hold(message))
    return mqcore.HOLD


FAULTS = [
    Fault(by_timer, CONTINUES),
    Fault(completed_by_timer, COMPLETES),
    Fault(failed_by_timer, FAILS),
    Fault(raises_in_a_timer, FAILS),
    Fault(by_a_thread, CONTINUES | COMPLETES),
    Fault(by_two_threads, CONTINUES),
    Fault(before_it_returns, CONTINUES),
    Fault(again, CONTINUES),
    Fault(again_by_timer, CONTINUES),
    Fault(again_without_end, FAILS),
    Fault(completes, COMPLETES),
    Fault(raises, FAILS),
    Fault(returns_nonsense, FAILS),
    Fault(forgotten, FAILS),
    Fault(never_given_back, FAILS),
]


async def waits(context: mqcore.Context, message: Message) -> Any:
    await asyncio.sleep(random.uniform(0, SOON))


async def waits_for_a_thread(context: mqcore.Context, message: Message) -> Any:
    async with asyncio.timeout(10):
        await asyncio.to_thread(int)
    return mqcore.COMPLETE


async def never_waits(context: mqcore.Context, message: Message) -> Any:
    return False


async def raises_late(context: mqcore.Context, message: Message) -> Any:
    await asyncio.sleep(0)
    raise ValueError("on purpose")


async def is_too_late(context: mqcore.Context, message: Message) -> Any:
    await asyncio.sleep(3600)


async def cancels_itself(context: mqcore.Context, message: Message) -> Any:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(SOON)


COROUTINES = [
    Fault(waits, CONTINUES),
    Fault(waits_for_a_thread, COMPLETES),
    Fault(never_waits, CONTINUES),
    Fault(raises_late, FAILS),
    Fault(is_too_late, FAILS),
    Fault(cancels_itself, FAILS),
]
