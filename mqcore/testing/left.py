"""What plugins have running on the loop."""

from __future__ import annotations

from typing import Any

from .. import Context
from ..loop import _clock


def describe_left() -> str:
    """The timers and watchers that run, a line for each; empty if there are none."""
    return "\n".join(_line(*each) for each in _clock.running())


def _line(lifetime: Any, callback: Any, due: int | None, fd: int | None) -> str:
    whose = "a native plugin" if lifetime is None else f"plugin {owner_of(lifetime)}"
    what = f"a timer, due at {(due - _clock.START) / 1e9:g} s," if due is not None else f"a watcher of fd {fd}"
    place = place_of(callback)
    return f"{whose} still has {what}" + (f" for {place}" if place else "")


def running_of(plugin: str) -> list[tuple[str, Any]]:
    """What runs of this plugin's: "timer" or "watcher", and the callback."""
    return [
        ("watcher" if due is None else "timer", getattr(callback, "__func__", callback))
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
    function = getattr(callback, "__func__", callback)
    code = getattr(function, "__code__", None)
    name = getattr(callback, "__qualname__", None) or getattr(callback, "__name__", None)
    if code is None:
        return name
    return f"{name} in {code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"
