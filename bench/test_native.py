"""Native plugins: what calls of their hooks cost beside a C loop, chains of both kinds, and holds that a native timer ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from building import build, build_cython
from native import NATIVE_PASSES_ON, NATIVE_TAKES, NATIVE_WORKS, dispatcher, native
from subjects import HOOK, Subject, messages

import mqcore

COUNT = 1_000
ROUNDS = 100
HELD = 20_000

PYTHON_TAKES = f"""
def {HOOK}(context, message):
    context.start_timer(0, context.continue_, message)
    return True
"""


def test_run_many(loop: Any, against: Callable[..., None]) -> None:
    """A list of messages through 10 native plugins, none of which takes them."""
    paths = native(NATIVE_PASSES_ON, 10)
    taken = messages(COUNT)
    with dispatcher(loop, *paths) as made:
        floor = build("_floor").NativeFloor(paths)
        hook = made.hook(HOOK)
        contenders = {"floor": lambda: floor.run_many(taken), "mqcore": lambda: hook.run_many(taken)}
        against("native", "run_many, 10 native plugins", contenders, rounds=ROUNDS, count=COUNT)


def test_mixed(loop: Any, against: Callable[..., None]) -> None:
    """Chains of ten: native and Python plugins in turn, and five of each, beside those of one kind."""
    taken = messages(COUNT)
    one = dispatcher(loop, *native(NATIVE_PASSES_ON, 10))
    other = dispatcher(loop, python=tuple(range(10)))
    halves = dispatcher(loop, *native(NATIVE_PASSES_ON, 5), python=tuple(range(5, 10)))
    paths = [path for number in range(0, 10, 2) for path in native(NATIVE_PASSES_ON, 1, number)]
    turns = dispatcher(loop, *paths, python=tuple(range(1, 10, 2)))
    with one as all_native, other as all_python, halves as in_halves, turns as in_turn:
        hooks = {
            "10 Python": all_python.hook(HOOK),
            "mqcore": in_turn.hook(HOOK),
            "5 native, then 5 Python": in_halves.hook(HOOK),
            "10 native": all_native.hook(HOOK),
        }
        contenders = {name: (lambda hook=hook: hook.run_many(taken)) for name, hook in hooks.items()}
        against("native", "run_many, 10 plugins of both kinds in turn", contenders, rounds=ROUNDS, count=COUNT)


def test_cython(loop: Any, against: Callable[..., None]) -> None:
    """10 plugins in Cython, whose hooks are def functions or C functions, beside the C loop that calls the former."""
    taken = messages(COUNT)
    hooks = build_cython("cython_hooks")
    as_c, as_def = Subject(loop, (hooks.as_c,) * 10), Subject(loop, (hooks.as_def,) * 10)
    floor = build("_floor").Floor(as_def.functions, as_def.contexts)
    contenders = {
        "floor": lambda: floor.run_many(taken),
        "mqcore": lambda: as_c.hook.run_many(taken),
        "def functions": lambda: as_def.hook.run_many(taken),
    }
    against("native", "run_many, 10 Cython plugins with C hooks", contenders, rounds=ROUNDS, count=COUNT)
    for each in (as_c, as_def):
        each.dispatcher.close()
        each.plugins.close()


class Holds:
    """Messages that are held by a plugin and given back by its timer, all in one go."""

    def __init__(self, loop: Any, made: mqcore.Dispatcher, count: int = HELD) -> None:
        self.loop = loop
        self.hook = made.hook(HOOK)
        self.messages = messages(count)
        self.left = 0

    def done(self, message: mqcore.Message, outcome: mqcore.Outcome) -> None:
        """Of one."""
        self.left -= 1
        if self.left == 0:
            self.loop.stop()

    def cycle(self) -> None:
        """Of all: begin, hold, fire, give back, done."""
        self.left = len(self.messages)
        self.hook.run_many(self.messages, done=self.done)
        self.loop.run_forever()


class Fires(Holds):
    """The floor under that: a timer of libuv's own for each message, which calls the same `done`."""

    def __init__(self, made: mqcore.Dispatcher, count: int = HELD) -> None:
        super().__init__(SimpleNamespace(stop=int), made, count)  # its loop stops by itself
        self.floor = build("_floor_loop")
        self.floor.open_library(uvloop.loop.__file__)
        self.floor.open_timers(count)

    def cycle(self) -> None:
        """Of all: start, fire, done."""
        self.left = len(self.messages)
        self.floor.fire_and_call(self.done, self.messages[0], mqcore.CONTINUE)


def test_hold(loop: Any, against: Callable[..., None]) -> None:
    """A timer for each message, which gives it back: in C, and in Python."""
    plugins = mqcore.Plugins()
    namespace: dict[str, Any] = {}
    exec(PYTHON_TAKES, namespace)
    plugins.add("plugin", type("Plugin", (), {HOOK: staticmethod(namespace[HOOK])})())
    with dispatcher(loop, *native(NATIVE_TAKES, 1)) as made, mqcore.Dispatcher(plugins, loop) as python:
        ours, theirs = Holds(loop, made), Holds(loop, python)
        contenders = {"libuv from C": Fires(made).cycle, "in Python": theirs.cycle, "mqcore": ours.cycle}
        against("native", "hold, give back from a native timer", contenders, rounds=30, count=HELD)
    plugins.close()


class Worker:
    """A thread with a loop and a dispatcher of its own, which does one piece of work each time it is asked to."""

    def __init__(self, paths: tuple[str, ...], work: Callable[[Any, mqcore.Dispatcher], Callable[[], None]]) -> None:
        self.paths, self.prepare = paths, work
        self.asked, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        self.done.acquire()

    def run(self) -> None:
        """In the thread."""
        loop = uvloop.new_event_loop()
        with dispatcher(loop, *self.paths) as made:
            work = self.prepare(loop, made)
            while True:
                self.done.release()
                self.asked.acquire()
                if self.over:
                    break
                work()
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()


def together(*workers: Worker) -> None:
    """One piece of work in each, at the same time."""
    for worker in workers:
        worker.asked.release()
    for worker in workers:
        worker.done.acquire()


@contextmanager
def two_workers(source: str, work: Callable[[Any, mqcore.Dispatcher], Callable[[], None]]) -> Iterator[tuple[Worker, Worker]]:
    """With 10 native plugins of that source."""
    workers = Worker(native(source, 10), work), Worker(native(source, 10), work)
    try:
        yield workers
    finally:
        for worker in workers:
            worker.over = True
            worker.asked.release()
            worker.thread.join()


def holding(loop: Any, made: mqcore.Dispatcher) -> Callable[[], None]:
    """Each plugin takes each message and gives it back by a timer."""
    return Holds(loop, made, 4 * COUNT).cycle


def passing(loop: Any, made: mqcore.Dispatcher) -> Callable[[], None]:
    """Each plugin looks at each message for a moment, and passes it on."""
    hook, taken = made.hook(HOOK), messages(4 * COUNT)
    return lambda: hook.run_many(taken) and None


@pytest.mark.parametrize(
    ("case", "source", "work"),
    [("10 native plugins hold", NATIVE_TAKES, holding), ("10 native plugins compute", NATIVE_WORKS, passing)],
    ids=["hold", "compute"],
)
def test_two_threads(
    loop: Any, against: Callable[..., None], case: str, source: str, work: Callable[..., Any]
) -> None:
    """A dispatcher in each of two threads, beside one that does the work of both."""
    with two_workers(source, work) as (one, other):
        contenders = {"one thread": lambda: [together(one), together(one)], "mqcore": lambda: together(one, other)}
        against("native", f"{case}, in two threads", contenders, rounds=20, count=8 * COUNT)
