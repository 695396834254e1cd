"""Much that is due at once: how long the longest turn of the loop is, until a callback was called for each of it.

Each way makes all of it due while the loop does not run. Then the loop runs, and something that is called once in each of its
turns looks at the processor time of its thread, which nothing else that runs on the machine touches.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import socket
from collections.abc import Callable, Iterator
from threading import Thread
from time import sleep, thread_time_ns
from types import SimpleNamespace
from typing import Any

from native import NATIVE_HOARDS, native
from subjects import HOOK, Subject, messages

import mqcore
from mqcore.plugins._plugins import _Candidate

CALL_NS = 20_000  # what each callback takes

logging.getLogger("mqcore").addHandler(logging.NullHandler())  # else each portion of what times out is told on stderr


class Stall:
    """Counts callbacks and measures turns."""

    def __init__(self, loop: Any, count: int) -> None:
        """`count`: how many are due at once."""
        self.loop = loop
        self.count = count
        self.left = count
        self.longest = 0
        self.before = 0

    def call(self, *args: Any) -> None:
        """What is due."""
        end = thread_time_ns() + CALL_NS
        while thread_time_ns() < end:
            pass
        self.left -= 1

    def turn(self) -> None:
        """Once in each turn."""
        now = thread_time_ns()
        self.longest = max(self.longest, now - self.before)
        self.before = now
        if self.left > 0:
            self.loop.call_soon(self.turn)
        else:
            self.loop.stop()

    def run(self) -> None:
        """All turns. The garbage collector is off: what it takes for so many objects is no loop's matter."""
        gc.collect()
        gc.disable()
        try:
            self.before = thread_time_ns()
            self.loop.call_soon(self.turn)
            self.loop.run_forever()
        finally:
            gc.enable()
        assert self.left == 0


def on_uvloop(stall: Stall) -> Iterator[None]:
    """`call_soon` of uvloop, which calls all in one turn."""
    for _ in range(stall.count):
        stall.loop.call_soon(stall.call)
    yield


def due_timers(stall: Stall) -> Iterator[None]:
    """`context.start_timer`."""
    subject = Subject(stall.loop, (stall.call,))
    for _ in range(stall.count):
        subject.contexts[0].start_timer(0.001, stall.call)
    sleep(0.01)
    yield
    subject.dispatcher.close()


def ready_watchers(stall: Stall) -> Iterator[None]:
    """`context.watch`, all of one socket."""

    def stop(watcher: mqcore.Watcher, events: int) -> None:
        watcher.stop()
        stall.call()

    subject = Subject(stall.loop, (stall.call,))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(stall.count):
            subject.contexts[0].watch(ours, mqcore.READ, stop)
        theirs.send(b"x")
        yield
        subject.dispatcher.close()


def added_plugins(stall: Stall) -> Iterator[None]:
    """Plugins that another thread adds, and their `mq_context_initialize`: a thousand at most."""
    stall.left = min(stall.count, 1_000)
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec(HOOK)])
    plugin = SimpleNamespace(**{HOOK: lambda context, message: None, "mq_context_initialize": stall.call})
    dispatcher = mqcore.Dispatcher(plugins, stall.loop)

    def add() -> None:
        new = [_Candidate(f"{number:06}", None, lambda undo: plugin) for number in range(stall.left)]
        with plugins._one_change():
            plugins._change([], new, {})

    in_a_thread(add)
    yield
    dispatcher.close()


def given_back(stall: Stall) -> Iterator[None]:
    """Messages that another thread gives back, and `done`."""
    subject, held = hold(stall)

    def give_back() -> None:
        for message in held:
            subject.contexts[0].continue_(message)

    in_a_thread(give_back)
    yield
    subject.dispatcher.close()


def given_back_natively(stall: Stall) -> Iterator[None]:
    """Messages that a native plugin gives back, outside of the loop, and `done`."""
    (path,) = native(NATIVE_HOARDS, 1)
    plugins = mqcore.Plugins()
    plugins.load(path)
    with mqcore.Dispatcher(plugins, stall.loop) as dispatcher:
        held = messages(stall.count)
        dispatcher.hook(HOOK).run_many(held, done=stall.call)
        ctypes.CDLL(path).give_all_back()
        yield
    plugins.close()


def timed_out(stall: Stall) -> Iterator[None]:
    """Messages that are held for too long, and `done`."""
    subject, _held = hold(stall, hold_timeout=0.001)
    sleep(0.01)
    yield
    subject.dispatcher.close()


def hold(stall: Stall, **options: Any) -> tuple[Subject, list[mqcore.Message]]:
    """All held, by a plugin that returned HOLD."""
    subject = Subject(stall.loop, (lambda context, message: mqcore.HOLD,), **options)
    held = messages(stall.count)
    subject.hook.run_many(held, done=stall.call)
    return subject, held


def stopped_timers(stall: Stall) -> Iterator[None]:
    """Timers of holds that another thread ended: what they refer to is dropped."""

    class Argument:
        def __del__(self) -> None:
            stall.call()

    def take(context: mqcore.Context, message: mqcore.Message) -> mqcore.Hold:
        made = context.hold(message)
        made.start_timer(1_000, print, Argument())
        holds.append(made)
        return made

    def give_back() -> None:
        for made in holds:
            made.complete()

    holds: list[mqcore.Hold] = []
    subject = Subject(stall.loop, (take,))
    taken = messages(stall.count)
    subject.hook.run_many(taken)
    in_a_thread(give_back)
    holds.clear()
    yield
    subject.dispatcher.close()


def replaced_plugins(stall: Stall) -> Iterator[None]:
    """Plugins that were removed, and their `mq_context_cleanup`."""
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec(HOOK)])
    plugin = SimpleNamespace(**{HOOK: lambda context, message: None, "mq_context_cleanup": stall.call})
    # All in one change, as from a folder, without writing so many files.
    with plugins._one_change():
        plugins._change([], [_Candidate(f"{number:06}", None, lambda undo: plugin) for number in range(stall.count)], {})
    dispatcher = mqcore.Dispatcher(plugins, stall.loop)
    with plugins._one_change():
        plugins._change([], [], {})
    yield
    dispatcher.close()


def in_a_thread(function: Callable[[], None]) -> None:
    """Run it on another thread, to its end."""
    thread = Thread(target=function)
    thread.start()
    thread.join()


def longest_turn(loop: Any, way: Callable[[Stall], Iterator[None]], count: int) -> float:
    """In ms, until all was called."""
    stall = Stall(loop, count)
    for _ in way(stall):
        stall.run()
    return stall.longest / 1e6


# By the phase of a tick that calls it.
WAYS = {
    "native": given_back_natively,
    "posted": added_plugins,
    "io": ready_watchers,
    "timer": due_timers,
    "timeout": timed_out,
    "resume": given_back,
    "stop": stopped_timers,
    "sweep": replaced_plugins,
}
