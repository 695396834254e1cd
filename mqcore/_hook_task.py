"""The asyncio task that a coroutine hook runs in, as the hook and asyncio see it.

What it does is done by a `Driver` of `_coroutine`, which has it for one call of a hook after the other. What asyncio's own code
reads or sets in a task without asking it must be there, though: so it is made by asyncio's `__init__`, for a coroutine that
never runs, and only its future is made anew, on the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn


async def _never_runs() -> None: ...


def _start_nothing(step: Callable[[], object], context: contextvars.Context) -> None: ...


_stand_in = _never_runs()
_stand_in.close()
_no_variables = contextvars.Context()
_no_loop: Any = SimpleNamespace(get_debug=bool, call_soon=_start_nothing)


class HookTask(asyncio.Task[Any]):
    """Made by mqcore alone. Between two calls it is done, to whoever asks."""

    __slots__ = ("_driver",)
    _driver: Any

    def __new__(cls, *args: object, **options: object) -> NoReturn:
        raise TypeError("HookTask objects are made by mqcore alone")

    def __init__(self, *args: object, **options: object) -> None:
        raise TypeError("HookTask objects are made by mqcore alone")

    def __init_subclass__(cls, **options: object) -> NoReturn:
        raise TypeError("HookTask cannot be subclassed")

    def __repr__(self) -> str:
        return super().__repr__() if self._driver.coroutine is not None else f"<HookTask idle name={self.get_name()!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("HookTask objects cannot be pickled")

    def done(self) -> bool:
        return bool(self._driver.over)

    def cancel(self, msg: Any = None) -> bool:
        return bool(self._driver.cancel(msg))

    def cancelling(self) -> int:
        return int(self._driver.cancels)

    def uncancel(self) -> int:
        return int(self._driver.uncancel())

    def get_coro(self) -> Any:
        return self._driver.coroutine

    def get_context(self) -> Any:
        return self._driver.variables

    def set_name(self, value: object, /) -> None:
        self._driver.name = None
        super().set_name(value)

    # For asyncio's own debugging: `repr`, `get_stack`.
    _coro = property(get_coro)
    _fut_waiter = property(lambda self: self._driver.waiter)
    _must_cancel = property(lambda self: self._driver.must_cancel)


def _may_begin_anew() -> bool:
    """Whether a future may be initialized twice: not since CPython 3.15, whose tasks bear to be without what is set there."""
    future: asyncio.Future[None] = asyncio.Future(loop=_no_loop)
    try:
        future.__init__(loop=_no_loop)  # type: ignore[misc]
    except RuntimeError:
        return False
    return True


BEGINS_ANEW = _may_begin_anew()


def new_task(driver: object, loop: asyncio.AbstractEventLoop) -> HookTask:
    """A task that is done until its driver begins, and that asyncio knows of."""
    task: Any = asyncio.Task.__new__(HookTask)
    task._driver = driver
    if BEGINS_ANEW:
        asyncio.Task.__init__(task, _stand_in, loop=_no_loop, context=_no_variables, name="")
    asyncio.Future.__init__(task, loop=loop)
    if not BEGINS_ANEW:
        asyncio.tasks._register_task(task)
    task._log_destroy_pending = False
    return task  # type: ignore[no-any-return]
