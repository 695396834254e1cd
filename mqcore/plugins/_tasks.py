"""What a plugin does on the loop besides its hooks: whose task failed."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ._checks import is_inside
from ._plugins import Plugin, Plugins

_Told = dict[str, Any]


def names_plugins(plugins: Plugins) -> Callable[[asyncio.AbstractEventLoop, _Told], None]:
    """An exception handler for the loop, which tells of what went wrong in a plugin's own tasks and callbacks by the plugin's
    logger. asyncio's own words name no plugin, only at times a coroutine."""

    def handle(loop: asyncio.AbstractEventLoop, told: _Told) -> None:
        plugin = plugin_of(plugins, told)
        if plugin is None:
            loop.default_exception_handler(told)
        else:
            plugin.log.error("plugin %s: %s", plugin.name, told["message"], exc_info=told.get("exception"))

    return handle


def plugin_of(plugins: Plugins, told: _Told) -> Plugin | None:
    """The plugin in whose files the outermost of the code is that this is about."""
    for file in _files(told):
        for plugin in plugins:
            if is_inside(file, plugin.path):
                return plugin
    return None


def _files(told: _Told) -> Iterator[str]:
    task = told.get("task") or told.get("future")
    if isinstance(task, asyncio.Task):
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None:
            yield code.co_filename
    error = told.get("exception")
    if error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
