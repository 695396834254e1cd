"""How a dispatcher notices that its uvloop loop ends without `close()`.

`asyncio.run`, `uvloop.run` and `Runner` close the loop's asynchronous generators before the loop: a suspended one ends the
dispatcher while callbacks can still run. A plain `loop.close()` does not, but ends its readers and drops their callbacks
before it looks at its handles: the finalizer of a reader's callback comes in time. (So would that of a far-off timer's.
But as long as a loop has a timer, each of its looks at the kernel reads the clock twice more.)
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from ._attach import end_on_any_thread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable


class _Sentinel:
    """The callback of a reader, and not one of its arguments: those are in a tuple."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close
        end_on_any_thread(self)  # on which the loop may be closed

    def __call__(self) -> None:
        """What the reader calls, never."""

    def __del__(self) -> None:
        self.close()


class Ending:
    """Calls `close` when `loop` ends, unless `cancel` came first. What cannot be made raises, and leaves nothing behind."""

    _silent = -1
    _start: asyncio.Handle | None = None
    _generator: AsyncGenerator[None, None] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[], object]) -> None:
        self._close = close
        self._loop = loop
        try:
            self._silent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()  # without a name: nobody writes to it
            loop.add_reader(self._silent, _Sentinel(close))
            self._generator = self._suspended()
            if loop.is_running():
                self._suspend()
            else:
                self._start = loop.call_soon(self._suspend)
        except BaseException:  # too many open files, no memory
            self.cancel()
            raise

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
        """May be called again where it was interrupted."""
        generator, self._generator = self._generator, None
        if self._silent >= 0:
            self._loop.remove_reader(self._silent)
            silent, self._silent = self._silent, -1
            os.close(silent)
        if self._start is not None:
            self._start.cancel()
            self._start = None
        if generator is not None:
            _step(generator.aclose())


def _step(awaitable: Any) -> None:
    with contextlib.suppress(StopIteration):
        awaitable.send(None)
