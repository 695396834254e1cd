"""How a dispatcher notices that its uvloop loop ends without `close()`.

`asyncio.run`, `uvloop.run` and `Runner` close the loop's asynchronous generators before the loop: a suspended one ends the
dispatcher while callbacks can still run. A plain `loop.close()` does not, but cancels its timers and drops their arguments
before it looks at its handles: the finalizer of an argument of a far-off timer comes in time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable

CENTURY = 100 * 365 * 86400.0


class _Sentinel:
    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close

    def __del__(self) -> None:
        self.close()


def _nothing(sentinel: _Sentinel) -> None:
    """What the far-off timer calls, a century from now."""


class Ending:
    """Calls `close` when `loop` ends, unless `cancel` came first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[], object]) -> None:
        self._close = close
        self._timer = loop.call_later(CENTURY, _nothing, _Sentinel(close))
        self._generator: AsyncGenerator[None, None] | None = self._suspended()
        self._start: asyncio.Handle | None = None
        if loop.is_running():
            self._suspend()
        else:
            self._start = loop.call_soon(self._suspend)

    async def _suspended(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._generator is not None:  # the loop closes it, not `cancel`
                self._generator = None
                self._close()

    def _suspend(self) -> None:
        self._start = None
        if self._generator is not None:
            _step(self._generator.__anext__())

    def cancel(self) -> None:
        self._timer.cancel()
        if self._start is not None:
            self._start.cancel()
            self._start = None
        generator, self._generator = self._generator, None
        if generator is not None:
            _step(generator.aclose())


def _step(awaitable: Any) -> None:
    with contextlib.suppress(StopIteration):
        awaitable.send(None)
