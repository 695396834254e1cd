"""Dispatchers that are half made, and closing."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hostile_tools as tools
from case_tools import CASES, case, raised
from hostile_tools import Finalizer, Owner, books, mqcore

# ------------------------------------------------------------------------------------------- a dispatcher that is half made


@case
def new_alone_is_whole_or_refuses(owner: Owner) -> None:
    dispatcher = mqcore.Dispatcher.__new__(mqcore.Dispatcher)
    message = mqcore.Message()
    for call in (
        dispatcher.held,
        dispatcher.stats,
        dispatcher.close,
        dispatcher.__enter__,
        lambda: dispatcher.__exit__(None, None, None),
        lambda: dispatcher.cancel(message),
        lambda: dispatcher.hook("mq_step"),
        lambda: dispatcher.loop,
        lambda: dispatcher.plugins,
        lambda: repr(dispatcher),
    ):
        error = raised(call)
        assert error is None or isinstance(error, mqcore.MqError), error
    assert isinstance(raised(mqcore.Hold), TypeError)
    for kind in (mqcore.Hold, mqcore.Context, mqcore.Timer, mqcore.Watcher, mqcore.Hook):
        assert isinstance(raised(kind), TypeError), kind
        assert isinstance(raised(kind.__new__, kind), TypeError), kind
        assert isinstance(raised(object.__new__, kind), TypeError), kind
    gc.collect()


@case
def init_again_changes_nothing(owner: Owner) -> None:
    dispatcher = owner.start({"10-hold": lambda context, message: True})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    assert isinstance(raised(dispatcher.__init__, owner.plugins({}), loop=owner.loop), mqcore.MqError)
    assert books(dispatcher) == (0, 0, 0, 0, 1, 0)
    dispatcher.close()
    assert isinstance(raised(dispatcher.__init__, owner.plugins({}), loop=owner.loop), mqcore.MqError)
    assert owner.finished == [(message, mqcore.FAIL)]


class InLifecycle:
    """Does something with its dispatcher in a function of its life."""

    def __init__(self, where: str, what: Callable[[Any], Any]) -> None:
        self.where, self.what = where, what
        self.dispatcher: Any = None
        self.calls: list[str] = []
        self.errors: list[BaseException | None] = []

    def _at(self, where: str) -> None:
        self.calls.append(where)
        if where == self.where and self.dispatcher is not None:
            self.errors.append(raised(self.what, self.dispatcher))

    def mq_initialize(self) -> None:
        self._at("initialize")

    def mq_context_initialize(self, context: Any) -> None:
        self._at("context_initialize")

    def mq_context_cleanup(self, context: Any) -> None:
        self._at("context_cleanup")

    def mq_cleanup(self) -> None:
        self._at("cleanup")

    def mq_step(self, context: Any, message: Any) -> bool:
        return False


def _do_run(dispatcher: Any) -> None:
    dispatcher.hook("mq_step").run(mqcore.Message())


def _do_run_many(dispatcher: Any) -> None:
    dispatcher.hook("mq_step").run_many([mqcore.Message(), mqcore.Message()])


def _do_close(dispatcher: Any) -> None:
    dispatcher.close()


def _do_init(dispatcher: Any) -> None:
    dispatcher.__init__(mqcore.Plugins())


def _do_change(dispatcher: Any) -> None:
    dispatcher.plugins.remove("10-other")


def _do_close_plugins(dispatcher: Any) -> None:
    dispatcher.plugins.close()


def _lifecycle_while_made(owner: Owner, what: Callable[[Any], Any]) -> None:
    """From `mq_context_initialize` while the dispatcher is being made, and again with an error afterwards."""
    for fails in (False, True):
        plugin = InLifecycle("context_initialize", what)
        if fails:
            other = SimpleNamespace(mq_context_initialize=lambda context: 1 / 0)
        else:
            other = SimpleNamespace(mq_step=lambda context, message: False)
        plugins = owner.plugins({"10-other": SimpleNamespace(mq_step=lambda context, message: False)})
        plugins.add("20-live", plugin)
        plugins.add("30-last", other)
        dispatcher = plugin.dispatcher = mqcore.Dispatcher.__new__(mqcore.Dispatcher)
        error = raised(dispatcher.__init__, plugins, loop=owner.loop)
        assert error is None or isinstance(error, mqcore.MqError), repr(error)
        assert all(each is None or isinstance(each, mqcore.MqError) for each in plugin.errors), plugin.errors
        if error is None:
            assert not fails, "an error of mq_context_initialize was lost"
            with contextlib.suppress(mqcore.MqError):
                dispatcher.hook("mq_step").run(mqcore.Message())
            books(dispatcher)
        owner.turn()
        assert raised(dispatcher.close) is None
        plugins.close()
        owner.turn()
        assert plugin.calls == ["initialize", "context_initialize", "context_cleanup", "cleanup"], plugin.calls


def _lifecycle_later(owner: Owner, where: str, what: Callable[[Any], Any]) -> None:
    """From a function of a plugin that comes to a dispatcher, or goes from it, while another plugin holds a message."""
    plugin = InLifecycle(where, what)
    holder = {"10-other": lambda context, message: False, "15-hold": lambda context, message: True}
    plugins = owner.plugins(holder)
    dispatcher = owner.dispatcher(plugins)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    plugin.dispatcher = dispatcher
    for change in (lambda: plugins.add("20-live", plugin), lambda: plugins.remove("20-live")):
        error = raised(change)
        assert error is None or isinstance(error, mqcore.MqError), repr(error)
        owner.turn()
        books(dispatcher)
    assert all(each is None or isinstance(each, mqcore.MqError) for each in plugin.errors), plugin.errors
    assert raised(dispatcher.close) is None
    plugins.close()
    owner.turn()
    assert owner.finished == [(message, mqcore.FAIL)], owner.finished
    assert plugin.calls.count("context_initialize") == plugin.calls.count("context_cleanup"), plugin.calls
    assert plugin.calls.count("initialize") == plugin.calls.count("cleanup"), plugin.calls


def _lifecycle_at_close(owner: Owner, what: Callable[[Any], Any]) -> None:
    plugin = InLifecycle("context_cleanup", what)
    plugins = owner.plugins({"10-other": lambda context, message: False, "15-hold": lambda context, message: True})
    plugins.add("20-live", plugin)
    plugin.dispatcher = dispatcher = owner.dispatcher(plugins)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    assert raised(dispatcher.close) is None
    assert len(plugin.errors) == 1, plugin.calls
    assert plugin.errors[0] is None or isinstance(plugin.errors[0], mqcore.MqError), plugin.errors
    owner.turn()
    assert owner.finished == [(message, mqcore.FAIL)], owner.finished
    plugins.close()
    owner.turn()
    assert plugin.calls == ["initialize", "context_initialize", "context_cleanup", "cleanup"], plugin.calls


def _add_lifecycle() -> None:
    for what in (_do_run, _do_run_many, _do_close, _do_init, _do_change, _do_close_plugins):
        name = what.__name__.removeprefix("_do_")
        CASES[f"lifecycle_{name}_while_made"] = lambda owner, what=what: _lifecycle_while_made(owner, what)
        CASES[f"lifecycle_{name}_in_cleanup_at_close"] = lambda owner, what=what: _lifecycle_at_close(owner, what)
        for where in ("initialize", "context_initialize", "context_cleanup", "cleanup"):
            CASES[f"lifecycle_{name}_in_{where}"] = lambda owner, what=what, where=where: _lifecycle_later(owner, where, what)


_add_lifecycle()


@case
def change_of_plugins_in_the_sweep(owner: Owner) -> None:
    """A context that is cleaned up in a turn of the loop takes another plugin away: that works."""
    cleaned: list[str] = []
    unraisable: list[Any] = []
    sys.unraisablehook = unraisable.append

    class Plugin:
        def __init__(self, name: str) -> None:
            self.name = name

        def mq_step(self, context: Any, message: Any) -> bool:
            return True

        def mq_context_cleanup(self, context: Any) -> None:
            cleaned.append(self.name)
            if self.name == "a":
                plugins.remove("d")

    plugins = owner.plugins({name: Plugin(name) for name in "abcd"})
    dispatcher = owner.dispatcher(plugins)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is None
    for name in "abc":
        plugins.remove(name)
    assert dispatcher.cancel(message)
    owner.run_until(lambda: len(cleaned) == 4)
    assert sorted(cleaned) == list("abcd") and list(plugins) == [] and not unraisable, (cleaned, unraisable)


# ------------------------------------------------------------------------------------------------------------------- close


@case
def close_with_forgotten_holds_in_cycles(owner: Owner) -> None:
    """`done` makes garbage of the next message's Hold, and the collector runs at every allocation while it closes."""
    holds: dict[Any, Any] = {}
    told: list[Any] = []

    class Mail(mqcore.Message):
        pass

    def hook(context: Any, message: Any) -> Any:
        holds[message] = context.hold(message)
        return holds[message]

    def done(message: Any, outcome: Any) -> None:
        told.append((outcome, type(message.error)))
        place = places[message]
        if place + 1 < len(messages):
            cycle = SimpleNamespace(hold=holds.pop(messages[place + 1], None))
            cycle.me = cycle
        gc.set_threshold(1, 1, 1)

    for way in ("close", "collect and close"):
        dispatcher = owner.start({"10-hold": hook})
        messages = [Mail() for _ in range(300)]
        places = {message: place for place, message in enumerate(messages)}
        told.clear()
        for message in messages:
            assert dispatcher.hook("mq_step").run(message, done=done) is None
        gc.collect()
        if way != "close":
            done(messages[9], None)
            told.clear()
        dispatcher.close()
        gc.set_threshold(700, 10, 10)
        owner.turn()
        assert len(told) == 300, len(told)
        assert {outcome for outcome, _ in told} == {mqcore.FAIL}
        assert {kind for _, kind in told} <= {mqcore.DispatcherClosed, mqcore.Abandoned}
        assert books(dispatcher)[4:] == (0, 0)
        holds.clear()


@case
def close_interrupted(owner: Owner) -> None:
    """KeyboardInterrupt anywhere in close() leaves a dispatcher that the next close() ends. A trace function raises it, at
    the n-th line or call of Python for each n; `done` and mq_context_cleanup are such lines."""
    for nth in range(1, 2000):
        calls = [0]

        def trace(frame: Any, event: str, arg: Any, calls: list[int] = calls, nth: int = nth) -> Any:
            calls[0] += 1
            if calls[0] == nth:
                raise KeyboardInterrupt
            return trace

        plugins = owner.plugins(
            {
                "10-hold": SimpleNamespace(
                    mq_step=lambda context, message: True, mq_context_cleanup=lambda context: len("cleaned up")
                ),
                "20-other": SimpleNamespace(mq_context_cleanup=lambda context: len("cleaned up")),
            }
        )
        dispatcher = owner.dispatcher(plugins)
        messages = [mqcore.Message() for _ in range(3)]
        assert dispatcher.hook("mq_step").run_many(messages, done=owner.done) == [None] * 3
        sys.settrace(trace)
        try:
            dispatcher.close()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        with contextlib.suppress(KeyboardInterrupt):  # on pyuv close() says what pyuv swallowed
            dispatcher.close()
        with contextlib.suppress(KeyboardInterrupt):
            owner.turn()
        owner.turn()
        assert books(dispatcher) == (0, 0, 3, 0, 0, 0) or books(dispatcher) == (0, 0, 0, 3, 0, 0), books(dispatcher)
        owner.finished.clear()
        owner.loop_errors.clear()
        owner.dispatchers.clear()
        plugins.close()
        if calls[0] < nth:
            break
    else:
        raise AssertionError("close() runs more Python than was thought")
    del dispatcher, messages, plugins
    gc.collect()
    assert tools.handles_and_holds() == (0, 0)


@case
def close_in_a_hook_of_run_many(owner: Owner) -> None:
    """The messages that wait for their turn fail as the one in the hook does."""
    for verdict in (False, True, mqcore.RETRY, mqcore.COMPLETE):

        def hook(context: Any, message: Any, verdict: Any = verdict) -> Any:
            owner.dispatchers[-1].close()
            return verdict

        dispatcher = owner.start({"10-close": hook, "20-after": lambda context, message: False})
        step = dispatcher.hook("mq_step")
        messages = [mqcore.Message() for _ in range(3)]
        assert step.run_many(messages, done=owner.done) == [mqcore.FAIL] * 3
        assert all(isinstance(message.error, mqcore.DispatcherClosed) for message in messages)
        assert isinstance(raised(step.run, messages[0]), mqcore.DispatcherClosed)
        assert books(dispatcher) == (0, 0, 3, 0, 0, 0) and owner.finished == []


@case
def close_from_done_and_from_a_finalizer(owner: Owner) -> None:
    for way in ("done", "finalizer", "args", "timer"):
        dispatcher = owner.start({"10-hold": _hold_with_timer if way == "timer" else lambda context, message, *args: True})
        close = dispatcher.close
        messages = [mqcore.Message() for _ in range(50)]
        told: list[Any] = []

        def done(message: Any, outcome: Any, way: str = way, told: list[Any] = told, close: Any = close) -> None:
            told.append(outcome)
            if way == "done":
                close()

        for message in messages:
            if way == "finalizer":
                message.data["x"] = Finalizer(close)
            if way == "timer":
                message.data["x"] = close
            if way == "args":
                with contextlib.suppress(mqcore.DispatcherClosed):
                    dispatcher.hook("mq_other").run(message, Finalizer(close), done=done)
            else:
                assert dispatcher.hook("mq_step").run(message, done=done) is None
        if way == "finalizer":
            messages.clear()
            del message
        elif way != "args":
            dispatcher.cancel(messages[0])
        owner.turn()
        owner.turn()
        if way != "args":
            assert told == [mqcore.FAIL] * 50, (way, told)
        dispatcher.close()
        assert books(dispatcher)[4:] == (0, 0)


def _hold_with_timer(context: Any, message: Any) -> Any:
    context.hold(message).start_timer(100, print, Finalizer(message.data["x"]))
    return True
