"""The clock of a test, and the loop that it drives."""

from __future__ import annotations

import asyncio
import functools
import math
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import uvloop

from ..errors import MqError
from ..loop import _clock
from .loop import VirtualLoop

MOST_TURNS = 100_000
"""Of a loop that always has something to do."""
MOST_MOVES = 100_000
"""Of the clock, for one thing that is waited for: timers that start themselves again would let it go on for ever."""
FOR_JOBS, FOR_THREADS, FOR_SOCKETS = 5.0, 0.2, 0.02
"""Real seconds that the clock waits for the world outside, before it moves on."""


class Clock:
    """The time of mqcore's timers and deadlines, and of asyncio, on a loop of its own that runs when the test says so.

    `owner`: "uvloop", or "pyuv", on which only mqcore's own timers are there. `real_time`: the clock moves no faster than the
    time does: to see a test as it would be.

    The clock stands still while plugins run. It moves to the next time at which something is due, in one exact order: those
    due at the same time are called in the order in which they were started, mqcore's before asyncio's. Sockets, processes and
    threads are real, and the time that they take is none; before the clock moves on it waits a moment for those that are at
    work: 5 s for `run_in_executor` and `getaddrinfo`, 0.2 s for other threads and for connections that begin, 20 ms for
    sockets and processes that are open. A plugin for which that is too short is tested with `real_time`.

    One clock at a time, for the thread that made it; `close()` it, or use `with`. Raises MqError when there is another clock.
    """

    def __init__(self, owner: str = "uvloop", *, real_time: bool = False) -> None:
        self.loop: Any = _new_loop(owner)
        self.real_time = real_time
        self.errors: list[BaseException] = []
        """What the loop's exception handler was given: what callbacks raised."""
        try:
            _clock.install(self.loop)
        except BaseException:
            self._close_loop()
            raise
        if isinstance(self.loop, uvloop.Loop):
            self.loop.set_exception_handler(self._on_asyncio_error)
        else:
            self.loop.excepthook = self._on_pyuv_error
        self._threads = set(threading.enumerate())
        self._usual = 0  # handles that are always there, but wait for nothing that matters

    @property
    def now(self) -> float:
        """Seconds since the clock began."""
        return (_clock.now() - _clock.START) / 1e9

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and call all that is due meanwhile, each at its time. Raises ValueError for a number that is
        negative or not finite, MqError in a test that is a coroutine."""
        if not isinstance(seconds, int | float):
            raise TypeError(f"advance() takes seconds, a number, not {seconds!r}")
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"advance() takes seconds, 0 or more, not {seconds!r}")
        end = _clock.now() + round(seconds * 1e9)
        self.run_until_idle()
        while (due := self._next()) is not None and due <= end:
            self._move(due)
            self.run_until_idle()
        while _clock.now() < end:
            self._move(end)
            self.run_until_idle()

    def run_until_idle(self) -> None:
        """Run all that can run without time passing. Raises MqError when that has no end."""
        quiet = turns = 0
        while quiet < 2:  # what a turn began to poll is polled in the next one
            if turns == MOST_TURNS:
                raise MqError(
                    f"the loop had something to do in {MOST_TURNS} turns; a plugin goes round in circles, or a watcher does "
                    "not read what its fd is ready for"
                )
            turns += 1
            self._turn()
            is_busy = _clock.ring()
            if isinstance(self.loop, VirtualLoop):
                is_busy |= self.loop.run_due()
            quiet = 0 if is_busy or self._is_ready() else quiet + 1

    def next_due(self) -> float | None:
        """When the next timer of a plugin, or of asyncio, is due, in seconds of `now`; None if there is none. (The deadlines of
        held messages are told by `Mq.next_deadline`.)"""
        due = [ns for _, _, ns, _ in _clock.running() if ns is not None]
        if isinstance(self.loop, VirtualLoop) and (timer := self.loop.next_timer()) is not None:
            due.append(timer)
        return (min(due) - _clock.START) / 1e9 if due else None

    def run_until(self, predicate: Callable[[], object]) -> bool:
        """Let time pass until the predicate holds, which is asked whenever nothing more can run without that. Returns whether
        it came to that: if not, nothing is due any more, and nobody outside does anything. Raises MqError when it does not come
        to that, and timers come again and again."""
        moves = 0
        while True:
            self.run_until_idle()
            if predicate():
                return True
            due = self._next()
            if due is not None:
                if moves == MOST_MOVES:
                    raise MqError(
                        f"what the test waits for did not come by {self.now:g} s, in {MOST_MOVES} steps of the clock, and "
                        "timers that start themselves again go on; it may never come"
                    )
                moves += 1
                self._move(due)
            elif not self._outside_acts(self._patience()):
                return False

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end, in virtual time, and return what it does. On uvloop only; what it raises is raised.
        Raises MqError when it waits for something that never comes."""
        task = self.loop.create_task(coroutine)
        if not self.run_until(task.done):
            task.cancel()
            self.run_until(task.done)
            raise MqError("the coroutine waits for what never comes: nothing is due, and nobody outside does anything")
        return task.result()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a plain function on the loop, which runs meanwhile, as it does around plugins in a server: `asyncio.run` is an
        error there, and `create_task` is none. Returns what the function does, and raises what it raises; MqError in a test
        that is a coroutine."""
        if not isinstance(self.loop, uvloop.Loop):
            return function(*args)  # nobody asks pyuv's loop whether it runs
        outcome: list[Callable[[], Any]] = []

        def call() -> None:
            try:
                result = function(*args)
            except BaseException as error:
                outcome.append(functools.partial(_raise, error))
            else:
                outcome.append(lambda: result)

        self.loop.call_soon(call)
        self._turn()
        return outcome.pop()()

    def close(self) -> None:
        """Close the loop. More than once is fine. Raises MqError when a dispatcher is still open on it."""
        if self.loop is None:
            return
        _clock.uninstall()
        self._close_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # The loop

    def ignore_open(self) -> None:
        """What is open now, the loop's own, is nothing to wait for."""
        self.run_until_idle()
        self._usual = _clock.outside()

    def _turn(self) -> None:
        if isinstance(self.loop, uvloop.Loop):
            if asyncio._get_running_loop() is not None:
                raise MqError("a test that is a coroutine runs in a loop already; make it a plain function")
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        else:
            import pyuv

            self.loop.run(pyuv.UV_RUN_NOWAIT)

    def _is_ready(self) -> bool:
        return _clock.is_ready() or self._outside_acts(0)

    def _next(self) -> int | None:
        due = _clock.next_alarm()
        timer = self.loop.next_timer() if isinstance(self.loop, VirtualLoop) else None
        return timer if due is None else due if timer is None else min(due, timer)

    def _move(self, due: int) -> None:
        """Move on, unless something comes from outside before."""
        began = time.perf_counter_ns()
        patience = (due - _clock.now()) / 1e9 if self.real_time else self._patience()
        came = self._outside_acts(patience)
        if not came:
            _clock.move_to(due)
        elif self.real_time:
            _clock.move_to(min(due, _clock.now() + time.perf_counter_ns() - began))

    def _patience(self) -> float:
        """How long, really, to wait for the world outside."""
        if isinstance(self.loop, VirtualLoop) and self.loop.jobs:
            return FOR_JOBS
        if isinstance(self.loop, VirtualLoop) and self.loop.connecting:
            return FOR_THREADS
        if any(thread not in self._threads and not _is_worker(thread) for thread in threading.enumerate()):
            return FOR_THREADS
        is_open = _clock.outside() > self._usual or any(fd is not None for _, _, _, fd in _clock.running())
        return FOR_SOCKETS if is_open else 0.0

    def _outside_acts(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(_clock.backend_fd(), select.POLLIN)
        return bool(poll.poll(math.ceil(seconds * 1000)))

    def _close_loop(self) -> None:
        loop, self.loop = self.loop, None
        if isinstance(loop, uvloop.Loop):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        else:
            import pyuv

            loop.run(pyuv.UV_RUN_NOWAIT)  # the last close callbacks
            loop.excepthook = None

    def _on_asyncio_error(self, loop: object, context: dict[str, Any]) -> None:
        self.errors.append(context.get("exception") or RuntimeError(context["message"]))

    def _on_pyuv_error(self, kind: type[BaseException], error: BaseException, traceback: object) -> None:
        self.errors.append(error)


def _new_loop(owner: str) -> Any:
    if owner == "uvloop":
        return VirtualLoop()
    if owner == "pyuv":
        import pyuv

        return pyuv.Loop()
    raise ValueError(f"a clock is for a loop of uvloop or pyuv, not of {owner!r}")


def _raise(error: BaseException) -> None:
    raise error


def _is_worker(thread: threading.Thread) -> bool:
    """Of an executor: it may wait there for work."""
    from concurrent.futures import thread as futures

    return thread in futures._threads_queues
