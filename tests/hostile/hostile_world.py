"""What machine.py drives at random: dispatchers, and the objects that misbehave around them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hostile_objects as objects
import hostile_tools as tools
from hostile_objects import Hostile, Value, make_error
from hostile_tools import mqcore

EXPECTED = (
    mqcore.MqError,
    Hostile,
    TypeError,
    ValueError,
    OSError,
    MemoryError,
    RecursionError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
)
VERDICTS = [False, None, mqcore.CONTINUE, True, True, mqcore.COMPLETE, mqcore.RETRY, getattr(mqcore, "HOLD", True)]
GIVES = ["continue_", "complete", "retry", "fail"]
KEPT = 40  # messages, holds, timers and so on that a world keeps at most of each


class Record:
    """One run: what it returned, and how often `done` was called."""

    __slots__ = ("returned", "told")

    def __init__(self) -> None:
        self.returned: Any = "nothing yet"
        self.told = 0

    def note(self, message: Any) -> None:
        self.told += 1


class Batch:
    """One run_many: what it returned, and how often `done` was called for each of its messages.

    Messages know their place by their payload, as they may be compared with nothing. One that died unseen comes as another one,
    without a payload.
    """

    def __init__(self, messages: list[Any]) -> None:
        self.returned: list[Any] = ["raised"] * len(messages)
        self.told = [0] * len(messages)
        self.stand_ins = 0
        for place, message in enumerate(messages):
            if message.payload is None:
                message.payload = {}
            message.payload[self] = place

    def note(self, message: Any) -> None:
        if message.payload is None:
            self.stand_ins += 1
        else:
            self.told[message.payload[self]] += 1

    def is_whole(self) -> bool:
        missing = 0
        for returned, told in zip(self.returned, self.told, strict=True):
            if told > (returned is None):
                return False
            missing += returned is None and not told
        return missing == self.stand_ins


class World:
    """Two dispatchers on one loop, with the same plugins, and whatever has come of them so far."""

    def __init__(self, owner: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.owner = tools.start_owner(owner)
        self.coroutines = owner == "uvloop"
        self.violations: list[str] = []
        self.fuel = 0
        self.depth = 0
        self.thread = threading.get_ident()
        self.messages: list[Any] = []
        self.holds: list[Any] = []
        self.contexts: list[Any] = []
        self.timers: list[Any] = []
        self.watchers: list[Any] = []
        self.weak: list[Any] = []
        self.records: list[Record] = []
        self.batches: list[Batch] = []
        self.tasks: list[Any] = []
        self.seen: Any = None
        self.sockets: list[socket.socket] = []
        self.other_file = os.open(os.devnull, os.O_RDONLY)
        self.names = (f"{number:03}-plug" for number in itertools.count(100))
        self.plugins = self.owner.plugins({"500-last": objects.Plug(self, life=False)})
        self.plugins.add("100-first", objects.Plug(self, life=False))
        self.dispatchers = [self.owner.dispatcher(self.plugins, hold_timeout=timeout) for timeout in (0.02, 0)]
        objects.Handler.world = objects.FinalMail.world = self

    # ------------------------------------------------------------------------------------------------- hostile code asks

    def mischief(self) -> None:
        """Perhaps do something now, wherever this is."""
        self.check()
        if self.fuel <= 0 or self.depth >= 3 or self.random.random() < 0.6:
            return
        self.fuel -= 1
        self.depth += 1
        try:
            self.attempt(self.random.choice(MISCHIEF), self)
        finally:
            self.depth -= 1

    def called(self, context: Any, message: Any) -> Any:
        """A hook was called: what it returns."""
        self.check()
        if self.fuel <= 0:
            return False
        self.fuel -= 1
        chance = self.random.random
        keep(self.contexts, context)
        if chance() < 0.1:
            message.data[chance()] = Value(self)
        if chance() < 0.1:
            keep(self.messages, message)
        self.mischief()
        verdict: Any = self.random.choice(VERDICTS)
        if chance() < 0.35:
            verdict = self.hold_in_hook(context, message)
        if chance() < 0.15:  # rule 7
            self.attempt(self.give, context, message)
        if chance() < 0.05:
            return Value(self)
        if chance() < 0.08:
            raise make_error(self)
        return verdict

    def hold_in_hook(self, context: Any, message: Any) -> Any:
        hold = self.attempt(context.hold, message)
        if hold is None:
            return True
        chance = self.random.random
        if chance() < 0.4:
            self.start_timer(hold)
        if chance() < 0.15:
            self.start_watcher(hold)
        if chance() < 0.15:
            cycle = SimpleNamespace(hold=hold, value=Value(self))
            cycle.me = cycle
        if chance() < 0.7:
            keep(self.holds, hold)
        return hold if chance() < 0.7 else True

    def check(self) -> None:
        for dispatcher in self.owner.dispatchers:
            s = dispatcher.stats()
            if s.entered != s.continued + s.completed + s.failed + s.cancelled + s.held + s.running or s.held < 0 > s.running:
                self.violations.append(f"rule 16: {replace(s, hooks=())}")

    def attempt(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call; what is raised must be an error that says why, or one of ours."""
        try:
            return function(*args, **options)
        except EXPECTED:
            return None
        except BaseException as error:
            import traceback

            self.violations.append("".join(traceback.format_exception(error)))
            return None

    # ------------------------------------------------------------------------------------ operations, also within another

    def pick(self, among: list[Any]) -> Any:
        try:
            return among[self.random.randrange(len(among))]
        except (IndexError, ValueError):  # there is none, or a finalizer or another thread has just taken some away
            return None

    def dispatcher(self) -> Any:
        return self.dispatchers[self.random.random() < 0.2]

    def message(self) -> Any:
        if self.messages and self.random.random() < 0.3:
            return self.pick(self.messages)
        kind = self.random.choice([mqcore.Message, objects.Mail, objects.FinalMail, objects.WrongMail, None])
        message = (kind or objects.late_mail())()
        if self.random.random() < 0.7:
            keep(self.messages, message)
        return message

    def record(self) -> Record:
        self.records.append(Record())
        return self.records[-1]

    def run(self) -> None:
        hook, args = self.dispatcher().hook("mq_step"), ()
        if self.random.random() < 0.3:
            hook, args = self.dispatcher().hook("mq_other"), (Value(self),)
        message, record = self.message(), self.record()
        record.returned = "raised"
        record.returned = hook.run(message, *args, done=objects.Done(self, record))

    def run_many(self) -> None:
        messages = [self.message() for _ in range(self.random.randrange(1, 8))]
        hook = self.dispatcher().hook("mq_step")
        batch = Batch(messages)
        self.batches.append(batch)
        batch.returned = hook.run_many(messages, done=objects.Done(self, batch))

    def may_use_tasks(self) -> bool:
        """asyncio's tasks belong to the loop's thread; a finalizer may run on another one."""
        return self.coroutines and threading.get_ident() == self.thread

    def start_awaiting(self) -> None:
        if self.may_use_tasks():
            hook, message = self.dispatcher().hook("mq_step"), self.message()

            async def wait() -> Any:
                return await hook(message)

            self.tasks.append(self.owner.loop.create_task(wait()))

    def cancel_task(self) -> None:
        task = self.pick(self.tasks)
        if task and self.may_use_tasks():
            task.cancel()

    def give(self, context: Any = None, message: Any = None) -> None:
        """Give back: by a Hold, live or stale, or by a context, whose message it may be or not."""
        what = self.random.choice(GIVES)
        extra = (make_error(self),) if what == "fail" else ()
        if context is None and self.random.random() < 0.6 and (hold := self.pick(self.holds)) is not None:
            getattr(hold, what)(*extra)
        else:
            context, message = context or self.pick(self.contexts), message or self.pick(self.messages)
            if context is not None and message is not None:
                getattr(context, what)(message, *extra)

    def hold(self) -> None:
        context, message = self.pick(self.contexts), self.pick(self.messages)
        if context is not None and message is not None:
            keep(self.holds, context.hold(message))

    def start_timer(self, on: Any = None) -> None:
        on = on or self.pick(self.holds + self.contexts)
        if on is not None:
            seconds = self.random.choice([0, 0, 0.001, 100])
            timer = self.attempt(on.start_timer, seconds, self.fired, Value(self) if self.random.random() < 0.5 else None, on)
            keep(self.timers, timer)

    def fired(self, value: Any, on: Any) -> None:
        self.mischief()
        if self.random.random() < 0.5 and isinstance(on, mqcore.Hold):
            self.attempt(on.continue_)
        if self.random.random() < 0.1:
            raise make_error(self)

    def use_timer(self) -> None:
        timer = self.pick(self.timers)
        if timer is not None:
            timer.stop() if self.random.random() < 0.5 else timer.reset(self.random.choice([0, 0.001, 100]))

    def start_watcher(self, on: Any = None) -> None:
        on = on or self.pick(self.holds + self.contexts)
        if on is not None:
            if len(self.sockets) < 8:
                self.sockets.extend(socket.socketpair())
            fd = self.pick(self.sockets)
            watcher = self.attempt(on.watch, fd, self.random.choice([1, 2, 3]), self.ready, Value(self))
            keep(self.watchers, watcher)

    def ready(self, watcher: Any, events: int, value: Any) -> None:
        if self.random.random() < 0.7:
            watcher.stop()
        self.mischief()
        if self.random.random() < 0.1:
            raise make_error(self)

    def use_watcher(self) -> None:
        watcher = self.pick(self.watchers)
        if watcher is not None:
            if self.random.random() < 0.5:
                watcher.stop()
            else:
                watcher.events = self.random.choice([1, 2, 3])

    def close_socket(self) -> None:
        """An fd that may be watched is closed, and its number is another file's. (Else uvloop, which makes sockets of its own
        each time it runs, would be given that number.)"""
        closing = self.pick(self.sockets)
        if closing is not None:
            os.dup2(self.other_file, closing.fileno())

    def cancel(self) -> None:
        message = self.pick(self.messages)
        if message is not None:
            self.dispatcher().cancel(message)

    def look(self) -> None:
        dispatcher = self.dispatcher()
        for each in dispatcher.held():
            if self.random.random() < 0.1:
                keep(self.messages, each.message)
        message, hold, context = self.pick(self.messages), self.pick(self.holds), self.pick(self.contexts)
        if message is not None:
            self.seen = (message.holder, message.error, message.retries, message.data)
        if hold is not None:
            self.seen = (hold.message, repr(hold))
        if context is not None:
            self.seen = (context.data, context.config, context.plugin, repr(context), context.loop)
        self.seen = None

    def change_class(self) -> None:
        message = self.pick(self.messages)
        if message is None or type(message) is mqcore.Message:
            return
        if self.random.random() < 0.5 and type(message).__name__ == "LateMail":
            type(message).__del__ = objects.FinalMail.__del__
            type(message).world = self
        else:
            message.__class__ = self.random.choice([objects.Mail, objects.FinalMail, objects.WrongMail])

    def forget(self) -> None:
        """Drop references: what they were the last of is abandoned."""
        for kept in (self.messages, self.holds, self.timers, self.watchers, self.contexts):
            if kept and self.random.random() < 0.5:
                with contextlib.suppress(IndexError):  # a finalizer or another thread was faster
                    kept.pop(self.random.randrange(len(kept)))

    def collect(self) -> None:
        gc.collect(self.random.randrange(3))

    def add_plugin(self) -> None:
        if len(self.plugins) < 8:
            plug: Any = objects.Plug(self, life=self.random.random() < 0.3)
            if self.coroutines and self.random.random() < 0.2:
                plug = objects.CoroutinePlug(self)
            self.plugins.add(next(self.names), plug)

    def remove_plugin(self) -> None:
        names = [plugin.name for plugin in self.plugins]
        if len(names) > 2:
            self.plugins.remove(self.random.choice(names))

    def reload(self) -> None:
        self.plugins.reload()

    def close(self) -> None:
        if self.random.random() < 0.03:
            self.dispatcher().close()

    # ------------------------------------------------------------------------------------------ operations of the top only

    def turn(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            self.attempt(self.owner.spin, wait=self.random.random() < 0.05)

    def crowd(self) -> None:
        """Another thread gives back, forgets and collects, while turns of the loop go on."""
        thread = threading.Thread(target=self._in_thread, args=(self.random.random(),))
        thread.start()
        while thread.is_alive():
            self.attempt(self.owner.spin, wait=False)
        thread.join()

    def _in_thread(self, seed: float) -> None:
        chosen = random.Random(seed)
        for _ in range(10):
            self.attempt(chosen.choice([World.give, World.give, World.give, World.forget, World.collect, World.cancel]), self)

    def with_collector(self) -> None:
        """The collector runs at every allocation that can start it."""
        gc.set_threshold(1, 1, 1)
        try:
            self.attempt(self.random.choice(OPERATIONS), self)
        finally:
            gc.set_threshold(700, 10, 10)

    def with_signal(self) -> None:
        """A signal handler raises in the middle of something."""
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, self.random.choice([20e-6, 50e-6, 100e-6, 300e-6]))
        try:
            self.attempt(self.random.choice([World.turn, World.run, World.run_many, World.cancel]), self)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: Any) -> None:
        if objects.may_raise_in(frame):
            raise self.random.choice([objects.PlainError, KeyboardInterrupt, objects.OwnBase])

    def with_trace(self) -> None:
        """A trace function raises in the middle of something."""

        def trace(frame: Any, event: str, arg: Any) -> Any:
            if objects.may_raise_in(frame) and self.random.random() < 0.1:
                raise self.random.choice([objects.PlainError, KeyboardInterrupt, objects.OwnBase])
            return trace

        sys.settrace(trace)
        try:
            self.attempt(self.random.choice([World.turn, World.run, World.run_many, World.cancel]), self)
        finally:
            sys.settrace(None)

    def operate(self, operation: Callable[[World], None]) -> None:
        self.fuel = 30
        self.attempt(operation, self)
        self.check()

    # ----------------------------------------------------------------------------------------------------------------- end

    def end(self) -> None:
        """Close, and check all that must be so at the end."""
        self.fuel = 0
        for dispatcher in self.dispatchers:
            self._close(dispatcher)
        self._close(self.plugins)
        limit = time.monotonic() + 20
        while [task for task in self.tasks if not task.done()] and time.monotonic() < limit:
            self.attempt(self.owner.spin, wait=False)
        if self.coroutines:
            while len(left := asyncio.all_tasks(self.owner.loop)) and time.monotonic() < limit:
                for task in left:
                    task.cancel()
                self.attempt(self.owner.spin, wait=False)
        for task in self.tasks:
            if not task.done():
                self.violations.append(f"an await never ends: {task}")
            elif not task.cancelled() and task.exception() and not issubclass(type(task.exception()), EXPECTED):
                self.violations.append(f"an await raised {task.exception()!r}")
        for _ in range(5):
            self.attempt(self.owner.spin, wait=False)
        for dispatcher in self.dispatchers:
            s = dispatcher.stats()
            if s.held or s.running:
                self.violations.append(f"after close: {replace(s, hooks=())}")
        for record in self.records:
            due = record.returned is None
            if record.told != due:
                self.violations.append(f"a run gave {record.returned!r}, and done was called {record.told} times")
        for batch in self.batches:
            if not batch.is_whole():
                told = f"{batch.told}, and {batch.stand_ins} times for stand-ins"
                self.violations.append(f"run_many gave {batch.returned}, and done was called so often: {told}")
        for kept in (self.messages, self.holds, self.contexts, self.timers, self.watchers, self.tasks):
            kept.clear()
        for each in self.sockets:
            each.close()
        os.close(self.other_file)
        for error in self.owner.loop_errors:
            if issubclass(type(error), SystemError):
                self.violations.append(f"in the loop: {error!r}")
        self.owner.loop_errors.clear()
        objects.Handler.world = objects.FinalMail.world = None
        self.owner.dispatchers.clear()
        self.dispatchers.clear()
        for _ in range(3):
            self.attempt(self.owner.spin, wait=False)
        self.attempt(self.owner.close_loop)

    def _close(self, what: Any) -> None:
        for _ in range(20):
            try:
                return what.close()
            except EXPECTED:
                continue
        self.violations.append(f"{what!r} cannot be closed")
        return None


def keep(kept: list[Any], what: Any) -> None:
    if what is not None:
        kept.append(what)
        if len(kept) > KEPT:
            del kept[0]


MISCHIEF: list[Callable[[World], None]] = [
    *[World.run] * 3,
    World.run_many,
    *[World.give] * 4,
    *[World.cancel] * 3,
    World.hold,
    World.start_timer,
    World.use_timer,
    World.start_watcher,
    World.use_watcher,
    World.close_socket,
    World.look,
    World.change_class,
    *[World.forget] * 2,
    World.collect,
    World.add_plugin,
    World.remove_plugin,
    World.reload,
    World.close,
    World.start_awaiting,
    World.cancel_task,
]
OPERATIONS: list[Callable[[World], None]] = [*MISCHIEF, *[World.run] * 4, *[World.turn] * 12]
TOP: list[Callable[[World], None]] = [
    *OPERATIONS,
    *[World.with_collector] * 3,
    World.with_signal,
    World.with_trace,
    World.crowd,
]
