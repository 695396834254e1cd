"""What comes of mails after their steps: errors in what plugins began with them and did not wait for."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections import Counter
from typing import Any, NamedTuple

from .. import NotHeld
from .._context import CALLBACK_RAISED
from ..plugins import Plugin
from ..plugins._checks import place
from ..plugins._tasks import plugin_of
from .places import own_place
from .steps import Mq

LONGEST = 86_400.0
"""Seconds of the clock that are waited for it."""
MOST_MOVES = 400
"""Of the clock meanwhile: a mail may begin what has no end."""
FORGOTTEN = "; a hook that has a message given back later returns mqcore.HOLD"


class Late(NamedTuple):
    """An error. `plugin`: None if it cannot be known whose; `place`: the plugin's line, as `10-a.py:3`, None likewise; `times`:
    how often it came."""

    plugin: str | None
    error: str
    place: str | None
    times: int

    def __str__(self) -> str:
        text = f"{self.plugin or '?'}  {self.error}" + (f" ({self.place})" if self.place else "")
        return text if self.times == 1 else f"{text}, {self.times} times"


class Aftermath(logging.Handler):
    """Notes what plugins' timers, watchers, callbacks and tasks fail with from now on, until `close`. What plugins began before
    is no mail's; their `mq_context_initialize` is called first. Raises PluginError where that fails."""

    def __init__(self, mq: Mq) -> None:
        super().__init__(logging.WARNING)
        self._mq = mq
        self._plugins = mq.dispatcher.plugins
        self._loop = mq.clock.loop
        self._usual_tasks = asyncio.all_tasks(self._loop)
        self._usual_timers = self._loop.count_timers()
        self._errors: Counter[tuple[str | None, str, str | None]] = Counter()
        self._others = self._loop.get_exception_handler()
        self._loop.set_exception_handler(self._on_asyncio_error)
        logging.getLogger("mqcore.plugins").addHandler(self)

    def close(self) -> None:
        logging.getLogger("mqcore.plugins").removeHandler(self)
        self._loop.set_exception_handler(self._others)
        super().close()

    def wait(self) -> list[Late]:
        """Let time pass until nothing is left of what was begun since, but for what seems to have no end; in real time do not.
        Returns all errors that came since this was made."""
        clock = self._mq.clock
        if not clock.real_time:
            end, moves = clock.now + LONGEST, itertools.count()
            clock.run_until(lambda: not self._is_busy() or clock.now > end or next(moves) == MOST_MOVES)
        for task in gc.get_objects():
            # One that is kept by a plugin: of others asyncio tells when they are dropped.
            if type(task) is asyncio.Task and task.get_loop() is self._loop and getattr(task, "_log_traceback", False):
                self._on_asyncio_error(self._loop, {"message": "", "task": task, "exception": task.exception()})
        return [Late(*error, times) for error, times in self._errors.items()]

    def _is_busy(self) -> bool:
        return bool(
            self._mq.left()
            or asyncio.all_tasks(self._loop) - self._usual_tasks
            or self._loop.count_timers() > self._usual_timers
        )

    def emit(self, record: logging.LogRecord) -> None:
        name = record.name.removeprefix("mqcore.plugins.")
        if isinstance(record.args, tuple) and record.args and isinstance(record.args[0], NotHeld):
            self._note(name, record.args[0])
        elif record.msg == CALLBACK_RAISED and record.exc_info and record.exc_info[1]:
            self._note(name, record.exc_info[1])

    def _on_asyncio_error(self, loop: Any, told: dict[str, Any]) -> None:
        plugin = plugin_of(self._plugins, told)
        self._note(None if plugin is None else plugin.name, told.get("exception") or RuntimeError(told["message"]))

    def _note(self, name: str | None, error: BaseException) -> None:
        plugin = next((each for each in self._plugins if each.name == name), None)
        text = f"{type(error).__name__}: {error}" + (FORGOTTEN if isinstance(error, NotHeld) else "")
        where = None if plugin is None else own_place(plugin.path, error) or _place_of_hook(plugin, str(error))
        self._errors[name, text, where] += 1


def _place_of_hook(plugin: Plugin, text: str) -> str | None:
    """Where the hook begins that an error is about. A give-back that a timer calls has no line."""
    for name, function in plugin.hooks.items():
        if f" {name} " in text:
            file, line = place(function, plugin.path)
            return None if file is None or line is None else f"{file.rpartition('/')[2]}:{line}"
    return None
