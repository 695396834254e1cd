"""What plugins have running on the loop."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import Context
from ..loop import _clock

if TYPE_CHECKING:
    from ..plugins import Plugin

Running: TypeAlias = tuple[Any, Any, int | None, int | None]
"""A timer or watcher: its lifetime, its callback, when it is due in ns, and its fd."""


def describe_left(left: Iterable[Running] | None = None) -> str:
    """These timers and watchers, or all that run, a line for each; empty if there are none."""
    return "\n".join(_line(*each) for each in (_clock.running() if left is None else left))


def count_works() -> Counter[object]:
    """How many timers and watchers run that are no message's, by what they are for."""
    return Counter(_work(*each) for each in _clock.running() if is_of_context(each))


def beyond(usual: Counter[object]) -> list[Running]:
    """What runs and is not among these works, which may have started themselves again since."""
    room = usual.copy()
    found = []
    for each in _clock.running():
        work = _work(*each) if is_of_context(each) else None
        if room[work] > 0:
            room[work] -= 1
        else:
            found.append(each)
    return found


def gives_back(running: Running) -> bool:
    """Whether it is a timer of a context that gives a message back, which may have gone on by then."""
    _, callback, due, _ = running
    return due is not None and isinstance(getattr(callback, "__self__", None), Context)


def is_of_context(running: Running) -> bool:
    return isinstance(running[0], Context)


def _work(lifetime: Any, callback: Any, due: int | None, fd: int | None) -> object:
    return owner_of(lifetime), "timer" if fd is None else "watcher", place_of(callback)


@contextlib.contextmanager
def noting_what_cleanup_leaves(plugins: Iterable[Plugin], usual: Counter[object]) -> Iterator[list[Running]]:
    """What runs beyond these works; while the plugins end, what `mq_context_cleanup` stops is taken out of the list."""
    cleaned = [plugin for plugin in plugins if plugin.kind == "python" and plugin.context_cleanup is not None]
    names = {plugin.name for plugin in cleaned}
    left = [each for each in beyond(usual) if not (is_of_context(each) and owner_of(each[0]) in names)]
    with contextlib.ExitStack() as undo:
        for plugin in cleaned:
            undo.callback(setattr, plugin, "context_cleanup", plugin.context_cleanup)
            plugin.context_cleanup = _noting(plugin.context_cleanup, usual, left)
        yield left


def _noting(cleanup: Callable[[Any], object] | None, usual: Counter[object], left: list[Running]) -> Callable[[Any], object]:
    assert cleanup is not None

    def call(context: Any) -> None:
        try:
            cleanup(context)
        finally:
            left.extend(each for each in beyond(usual) if each[0] is context)

    return call


def _line(lifetime: Any, callback: Any, due: int | None, fd: int | None) -> str:
    whose = "a native plugin" if lifetime is None else f"plugin {owner_of(lifetime)}"
    what = f"a timer, due at {(due - _clock.START) / 1e9:g} s" if due is not None else f"a watcher of fd {fd}"
    place = place_of(callback)
    return f"{whose} still has {what}" + (f"{',' if due is not None else ''} for {place}" if place else "")


def running_of(plugin: str) -> list[tuple[str, Any, float | None]]:
    """What runs of this plugin's: "timer" or "watcher", the callback, and in how many seconds it is due, None of a watcher."""
    return [
        (
            "watcher" if due is None else "timer",
            getattr(callback, "__func__", callback),
            None if due is None else (due - _clock.now()) / 1e9,
        )
        for lifetime, callback, due, _ in _clock.running()
        if lifetime is not None and owner_of(lifetime) == plugin
    ]


def owner_of(lifetime: Any) -> str:
    """The name of the plugin whose context or hold it is."""
    if isinstance(lifetime, Context):
        return lifetime.plugin.name
    message = lifetime.message
    return "?" if message is None else str(message.holder)


def place_of(callback: Any) -> str | None:
    """Where a callback is from, as `wait in 20-wait.py:2`."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    function = getattr(callback, "__func__", callback)
    code = getattr(function, "__code__", None)
    name = getattr(callback, "__qualname__", None) or getattr(callback, "__name__", None)
    if code is None:
        return name
    return f"{name} in {code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"
