"""Loops to test on, and the reference model in the place of one: what the fixtures of conftest.py give."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import reference
import uvloop

import mqcore

STEP = mqcore.HookSpec("mq_step")
OTHER = mqcore.HookSpec("mq_other", "extra")


def assert_conserved(dispatcher: Any) -> None:
    """Rule 16: every step that was entered is in exactly one place."""
    s = dispatcher.stats()
    assert s.entered == s.continued + s.completed + s.failed + s.cancelled + s.held + s.running, s
    assert min(s.entered, s.continued, s.completed, s.failed, s.cancelled, s.held, s.running) >= 0, s


class Owner:
    """A loop, the dispatchers made on it, and what they told: the part that all kinds of loop share."""

    name: str
    loop: Any = None
    Message: type[Any] = mqcore.Message
    Dispatcher: type[Any] = mqcore.Dispatcher

    def __init__(self) -> None:
        self.dispatchers: list[Any] = []
        self.made_plugins: list[mqcore.Plugins] = []
        self.finished: list[tuple[Any, mqcore.Outcome]] = []  # what `done` was told
        self.loop_errors: list[BaseException] = []  # given to the loop's exception handler; a test that expects it clears it

    def plugins(self, hooks: Mapping[str, Any], **options: Any) -> mqcore.Plugins:
        """Plugins by name: a function becomes a plugin with the hook mq_step, anything else is added as it is."""
        options.setdefault("hooks", [STEP, OTHER])
        plugins = mqcore.Plugins(**options)
        self.made_plugins.append(plugins)
        for name, what in hooks.items():
            plugins.add(name, as_plugin(what))
        return plugins

    def dispatcher(self, plugins: mqcore.Plugins, **options: Any) -> Any:
        dispatcher = self.Dispatcher(plugins, loop=self.loop, **options)
        self.dispatchers.append(dispatcher)
        return dispatcher

    def start(self, hooks: Mapping[str, Any], *, config: Any = None, **options: Any) -> Any:
        """A dispatcher for these plugins."""
        return self.dispatcher(self.plugins(hooks, config=config), **options)

    def done(self, message: Any, outcome: mqcore.Outcome) -> None:
        """To give as `done`: notes what it is told in `finished`."""
        self.finished.append((message, outcome))

    def turn(self) -> None:
        """A few iterations of the loop, without waiting for anything."""
        for _ in range(3):
            self.spin(wait=False)

    def run_until(self, predicate: Callable[[], Any], timeout: float = 30.0) -> None:
        """Run the loop until the predicate holds; the test fails when that takes longer than `timeout` seconds."""
        limit = time.monotonic() + timeout
        spins = 0
        while not predicate():
            if time.monotonic() > limit:
                stats = [dispatcher.stats() for dispatcher in self.dispatchers]
                raise AssertionError(f"not so after {timeout} s on {self.name}; finished: {self.finished}; stats: {stats}")
            self.spin(wait=spins > 20)
            spins += 1

    def spin(self, wait: bool) -> None:
        """One iteration of the loop; with `wait`, it may sleep for a millisecond."""
        raise NotImplementedError

    def finish(self) -> None:
        """Check the books, close the dispatchers and wait for the loop to let go of their handles."""
        try:
            for dispatcher in self.dispatchers:
                assert_conserved(dispatcher)
            for dispatcher in self.dispatchers:
                dispatcher.close()
                assert_conserved(dispatcher)
                stats = dispatcher.stats()
                assert (stats.held, stats.running) == (0, 0), stats
                for row in stats.hooks:  # each hold is over, and was counted by how long it took, once
                    assert (row.held, row.holds) == (0, sum(row.hold_times)), row
            self.dispatchers.clear()
            for plugins in self.made_plugins:
                plugins.close()
            self.made_plugins.clear()
            self.finished.clear()
            self.turn()
            assert not self.loop_errors, self.loop_errors
        finally:
            self.close_loop()

    def close_loop(self) -> None:
        raise NotImplementedError


class UvloopOwner(Owner):
    name = "uvloop"

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(self._on_error)

    def _on_error(self, loop: Any, context: dict[str, Any]) -> None:
        self.loop_errors.append(context.get("exception") or RuntimeError(context["message"]))

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(coroutine)

    def spin(self, wait: bool) -> None:
        if wait:
            self.loop.call_later(0.001, self.loop.stop)
        else:
            self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def close_loop(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class PyuvOwner(Owner):
    name = "pyuv"

    def __init__(self) -> None:
        super().__init__()
        import pyuv

        self._pyuv = pyuv
        self.loop = pyuv.Loop()
        self.loop.excepthook = self._on_error
        self._alive = pyuv.Timer(self.loop)
        self._alive.start(_nothing, 0.001, 0.001)

    def _on_error(self, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        self.loop_errors.append(error)

    def spin(self, wait: bool) -> None:
        self.loop.run(self._pyuv.UV_RUN_ONCE if wait else self._pyuv.UV_RUN_NOWAIT)

    def close_loop(self) -> None:
        self._alive.close()
        self.loop.run(self._pyuv.UV_RUN_NOWAIT)
        self.loop.excepthook = None


class ReferenceOwner(Owner):
    """The reference model: its queue is drained by hand and its clock jumps to the next deadline."""

    name = "reference"
    Message = reference.Message
    Dispatcher = reference.Dispatcher

    def __init__(self) -> None:
        super().__init__()
        self.loop = SimpleNamespace(
            call_exception_handler=lambda context: self.loop_errors.append(context["exception"])
        )

    def spin(self, wait: bool) -> None:
        for dispatcher in list(self.dispatchers):
            dispatcher.drain()
            if wait:
                dispatcher.advance(0.01)

    def close_loop(self) -> None:
        pass


def as_plugin(what: Any) -> Any:
    return SimpleNamespace(mq_step=what) if callable(what) and not isinstance(what, type) else what


def _nothing(*args: Any) -> None:
    pass


OWNERS: dict[str, type[Owner]] = {"uvloop": UvloopOwner, "pyuv": PyuvOwner, "reference": ReferenceOwner}
