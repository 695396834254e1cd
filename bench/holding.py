"""Holding many messages at once and giving them all back: by mqcore, and by what people use for it today.

Each way is made with a loop and messages. `hold()` takes all messages, `give_back()` gives all back, and `finish()`
runs the loop until the end of each message was told to a Python function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from threading import Thread
from types import MappingProxyType
from typing import Any

import greenlet
from building import build
from subjects import Subject

import mqcore


class Way:
    """One way to hold messages. Each has its own `hold`, which takes all messages, and `give_back`, which gives all back."""

    hold: Callable[[], None]
    give_back: Callable[[], None]

    def __init__(self, loop: Any, messages: list[Any]) -> None:
        """Nothing is held yet."""
        self.loop = loop
        self.messages = messages
        self.left = 0
        self.open()

    def open(self) -> None:
        """What is made once."""

    def close(self) -> None:
        """The end of it."""

    def finished(self, message: Any, outcome: Any) -> None:
        """The end of one message."""
        self.left -= 1
        if self.left == 0:
            self.loop.stop()

    def finish(self) -> None:
        """Run the loop until all have ended."""
        self.loop.run_forever()

    def cycle(self) -> None:
        """All of it."""
        self.left = len(self.messages)
        self.hold()
        self.give_back()
        self.finish()
        assert self.left == 0


class ByMqcore(Way):
    """The hook returns true, `context.continue_` gives back."""

    options: Mapping[str, Any] = MappingProxyType({})

    def open(self) -> None:
        """A dispatcher with one plugin."""
        self.subject = Subject(self.loop, (self.take,), **self.options)
        self.context = self.subject.contexts[0]

    def close(self) -> None:
        """Close the dispatcher."""
        self.subject.dispatcher.close()

    @staticmethod
    def take(context: mqcore.Context, message: mqcore.Message) -> Any:
        """The hook."""
        return True

    def hold(self) -> None:
        """One run for each message."""
        run, finished = self.subject.hook.run, self.finished
        for message in self.messages:
            run(message, done=finished)

    def give_back(self) -> None:
        """As a plugin does it: with its context."""
        continue_ = self.context.continue_
        for message in self.messages:
            continue_(message)


class ByWatched(ByMqcore):
    """The same, with a watchdog."""

    options = MappingProxyType({"watchdog": 0.5})


class ByFloor(ByMqcore):
    """C that calls the same hook and `finished`, and keeps what is given back in an array in between."""

    def open(self) -> None:
        """The floor under the same plugin."""
        super().open()
        self.floor = build("_floor").Floor((self.take,), self.subject.contexts)

    def finished(self, message: Any, outcome: Any) -> None:
        """The end of one message."""
        self.left -= 1

    def hold(self) -> None:
        """Call the hook for each message."""
        run = self.floor.run
        for message in self.messages:
            run(message)

    def give_back(self) -> None:
        """Note each message."""
        give_back = self.floor.give_back
        for message in self.messages:
            give_back(message)

    def finish(self) -> None:
        """There is no loop to run."""
        self.floor.drain(self.finished)


class ByHold(ByMqcore):
    """The hook returns a Hold, which gives back."""

    def open(self) -> None:
        """The Holds are kept in a list."""
        self.holds: list[mqcore.Hold] = []
        super().open()

    def take(self, context: mqcore.Context, message: mqcore.Message) -> Any:  # type: ignore[override]
        """The hook."""
        hold = context.hold(message)
        self.holds.append(hold)
        return hold

    def give_back(self) -> None:
        """With each Hold."""
        for hold in self.holds:
            hold.continue_()
        self.holds.clear()


class ByTimer(ByMqcore):
    """The hook starts a timer, which gives back."""

    @staticmethod
    def take(context: mqcore.Context, message: mqcore.Message) -> Any:
        """The hook."""
        context.start_timer(0.001, context.continue_, message)
        return True

    def give_back(self) -> None:
        """The timers do."""


class ByThread(ByMqcore):
    """Another thread gives back."""

    def give_back(self) -> None:
        """While the loop runs."""
        Thread(target=super().give_back).start()


class ByCoroutine(ByMqcore):
    """The hook is a coroutine, which awaits a future."""

    def open(self) -> None:
        """The futures are kept in a list."""
        self.futures: list[asyncio.Future[None]] = []

        async def take(context: mqcore.Context, message: mqcore.Message) -> bool:
            future = self.loop.create_future()
            self.futures.append(future)
            await future
            return False

        self.take = take  # type: ignore[method-assign]
        super().open()

    def give_back(self) -> None:
        """Let each future be done, once each task has come to it."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        for future in self.futures:
            future.set_result(None)
        self.futures.clear()


class ByDict(Way):
    """A dict of callbacks, called by the loop. What people write who need it fast."""

    def open(self) -> None:
        """The dict."""
        self.pending: dict[Any, Callable[[Any, Any], None]] = {}

    def hold(self) -> None:
        """Remember what to call."""
        for message in self.messages:
            self.pending[message] = self.finished

    def give_back(self) -> None:
        """Have it called by the loop, never nested."""
        for message in self.messages:
            self.loop.call_soon(self.pending.pop(message), message, True)


class ByDictAndTimer(ByDict):
    """A dict of callbacks, and a timer of the loop for each message."""

    def hold(self) -> None:
        """With the timer."""
        for message in self.messages:
            self.pending[message] = self.finished
            self.loop.call_later(0.001, self.wake, message)

    def wake(self, message: Any) -> None:
        """The timer's callback."""
        self.pending.pop(message)(message, True)

    def give_back(self) -> None:
        """The timers do."""


class ByDictAndThread(ByDict):
    """A dict of callbacks, called by `call_soon_threadsafe`."""

    def give_back(self) -> None:
        """From another thread."""
        Thread(target=self.give_back_there).start()

    def give_back_there(self) -> None:
        """In that thread."""
        for message in self.messages:
            self.loop.call_soon_threadsafe(self.pending.pop(message), message, True)


class ByFuture(Way):
    """A future with a callback for each message."""

    def open(self) -> None:
        """The futures."""
        self.futures: list[asyncio.Future[bool]] = []

    def hold(self) -> None:
        """Make the future."""
        for message in self.messages:
            future = self.loop.create_future()
            future.add_done_callback(lambda future, message=message: self.finished(message, future.result()))
            self.futures.append(future)

    def give_back(self) -> None:
        """Let each be done."""
        for future in self.futures:
            future.set_result(True)
        self.futures.clear()


class ByTask(ByFuture):
    """A task for each message, which awaits a future."""

    def open(self) -> None:
        """The tasks are kept, as asyncio asks for."""
        super().open()
        self.tasks: set[asyncio.Task[None]] = set()

    async def handle(self, message: Any) -> None:
        """One message."""
        future = self.loop.create_future()
        self.futures.append(future)
        self.finished(message, await future)

    def hold(self) -> None:
        """Start the tasks, and let each come to its future."""
        for message in self.messages:
            handling: Coroutine[Any, Any, None] = self.handle(message)
            task = self.loop.create_task(handling)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def finish(self) -> None:
        """Until the last task is gone too."""
        super().finish()
        while self.tasks:
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()


class ByGreenlet(Way):
    """A greenlet for each message."""

    def open(self) -> None:
        """The greenlets."""
        self.hub = greenlet.getcurrent()
        self.greenlets: list[greenlet.greenlet] = []

    def handle(self, message: Any) -> None:
        """One message."""
        self.finished(message, self.hub.switch())

    def hold(self) -> None:
        """Run each until it waits."""
        for message in self.messages:
            made = greenlet.greenlet(self.handle, self.hub)
            made.switch(message)
            self.greenlets.append(made)

    def give_back(self) -> None:
        """Have each go on, by the loop."""
        for each in self.greenlets:
            self.loop.call_soon(each.switch, True)
        self.greenlets.clear()


WAYS: dict[str, type[Way]] = {
    "dict + callback": ByDict,
    "mqcore": ByMqcore,
    "bare future": ByFuture,
    "task awaiting a future": ByTask,
    "greenlet": ByGreenlet,
}
