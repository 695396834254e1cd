"""Timers by mqcore and by others: each starts and fires, starts and stops, or resets `count` timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import gevent
import gevent.hub
import pyuv
from subjects import PASSES_ON, Subject, functions_of

SOON = 0.001
LATER = 10.0


def nothing(*args: Any) -> None:
    """The callback of a timer that is not to fire."""


def turn(loop: Any) -> None:
    """Let a loop of asyncio's kind clean up behind what was stopped."""
    loop.call_soon(loop.stop)
    loop.run_forever()


class Countdown:
    """Calls `end` when all timers of a round have fired."""

    def __init__(self, count: int, end: Callable[[], Any]) -> None:
        """`fired` is the timers' callback."""
        self.left = count
        self.end = end

    def fired(self, *args: Any) -> None:
        """One has."""
        self.left -= 1
        if self.left == 0:
            self.end()


class ByMqcore:
    """`context.start_timer`."""

    def __init__(self, loop: Any, count: int) -> None:
        """A context, as a plugin has it."""
        self.loop = loop
        self.count = count
        self.subject = Subject(loop, functions_of(PASSES_ON, 1))
        self.context = self.subject.contexts[0]
        self.timer = self.context.start_timer(0.0, nothing)

    def start_and_fire(self) -> None:
        """All at once, then all fire."""
        fired = Countdown(self.count, self.loop.stop).fired
        start_timer = self.context.start_timer
        for _ in range(self.count):
            start_timer(SOON, fired)
        self.loop.run_forever()

    def start_and_stop(self) -> None:
        """All at once, then all are stopped."""
        start_timer = self.context.start_timer
        for timer in [start_timer(LATER, nothing) for _ in range(self.count)]:
            timer.stop()
        turn(self.loop)

    def start_and_stop_in_turn(self) -> None:
        """One after the other."""
        start_timer = self.context.start_timer
        for _ in range(self.count):
            start_timer(LATER, nothing).stop()
        turn(self.loop)

    def reset(self) -> None:
        """The same one again and again."""
        reset = self.timer.reset
        for _ in range(self.count):
            reset(LATER)
        self.timer.stop()

    def close(self) -> None:
        """Close the dispatcher."""
        self.subject.dispatcher.close()


class ByCallLater:
    """`call_later` of uvloop or of asyncio."""

    def __init__(self, loop: Any, count: int) -> None:
        """On that loop."""
        self.loop = loop
        self.count = count

    def start_and_fire(self) -> None:
        """All at once, then all fire."""
        fired = Countdown(self.count, self.loop.stop).fired
        call_later = self.loop.call_later
        for _ in range(self.count):
            call_later(SOON, fired)
        self.loop.run_forever()

    def start_and_stop(self) -> None:
        """All at once, then all are stopped."""
        call_later = self.loop.call_later
        for handle in [call_later(LATER, nothing) for _ in range(self.count)]:
            handle.cancel()
        turn(self.loop)

    def start_and_stop_in_turn(self) -> None:
        """One after the other."""
        call_later = self.loop.call_later
        for _ in range(self.count):
            call_later(LATER, nothing).cancel()
        turn(self.loop)

    def reset(self) -> None:
        """There is no way but a new one."""
        call_later = self.loop.call_later
        handle = call_later(LATER, nothing)
        for _ in range(self.count):
            handle.cancel()
            handle = call_later(LATER, nothing)
        handle.cancel()
        turn(self.loop)

    def close(self) -> None:
        """Nothing."""


class ByAsyncio(ByCallLater):
    """`call_later` of asyncio's own loop."""

    def __init__(self, loop: Any, count: int) -> None:
        """A loop of its own."""
        super().__init__(asyncio.SelectorEventLoop(), count)

    def close(self) -> None:
        """Close the loop."""
        self.loop.close()


class ByPyuv:
    """A new `pyuv.Timer` each time; a reset is a start of the same."""

    def __init__(self, loop: Any, count: int) -> None:
        """A loop of its own."""
        self.loop = pyuv.Loop()
        self.count = count

    def start_and_fire(self) -> None:
        """All at once, then all fire; each is closed then."""
        for _ in range(self.count):
            pyuv.Timer(self.loop).start(pyuv.Timer.close, SOON, 0.0)
        self.loop.run()

    def start_and_stop(self) -> None:
        """All at once, then all are closed."""
        timers = [pyuv.Timer(self.loop) for _ in range(self.count)]
        for timer in timers:
            timer.start(nothing, LATER, 0.0)
        for timer in timers:
            timer.close()
        self.loop.run()

    def start_and_stop_in_turn(self) -> None:
        """One after the other."""
        for _ in range(self.count):
            timer = pyuv.Timer(self.loop)
            timer.start(nothing, LATER, 0.0)
            timer.close()
        self.loop.run()

    def reset(self) -> None:
        """The same one again and again."""
        timer = pyuv.Timer(self.loop)
        for _ in range(self.count):
            timer.start(nothing, LATER, 0.0)
        timer.close()
        self.loop.run()

    def close(self) -> None:
        """Nothing."""


class ByGevent:
    """A timer of libev, by gevent."""

    def __init__(self, loop: Any, count: int) -> None:
        """gevent's hub."""
        self.loop = gevent.get_hub().loop
        self.count = count

    def start_and_fire(self) -> None:
        """All at once, then all fire."""
        waiter = gevent.hub.Waiter()
        fired = Countdown(self.count, lambda: waiter.switch(None)).fired
        timers = []
        for _ in range(self.count):
            timer = self.loop.timer(SOON)
            timer.start(fired)
            timers.append(timer)
        waiter.get()
        for timer in timers:
            timer.close()

    def start_and_stop(self) -> None:
        """All at once, then all are closed."""
        timers = [self.loop.timer(LATER) for _ in range(self.count)]
        for timer in timers:
            timer.start(nothing)
        for timer in timers:
            timer.stop()
            timer.close()

    def start_and_stop_in_turn(self) -> None:
        """One after the other."""
        for _ in range(self.count):
            timer = self.loop.timer(LATER)
            timer.start(nothing)
            timer.stop()
            timer.close()

    def reset(self) -> None:
        """The same one again and again."""
        timer = self.loop.timer(LATER)
        for _ in range(self.count):
            timer.stop()
            timer.start(nothing)
        timer.stop()
        timer.close()

    def close(self) -> None:
        """Nothing."""


WAYS: dict[str, Any] = {
    "mqcore": ByMqcore,
    "uvloop": ByCallLater,
    "asyncio": ByAsyncio,
    "pyuv": ByPyuv,
    "gevent": ByGevent,
}
