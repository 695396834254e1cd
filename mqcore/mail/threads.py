"""What blocks, in threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from .errors import SourceError

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call it in a thread. Does not end before that does, though it be cancelled."""
    call = _Call(asyncio.get_running_loop(), function, arguments)
    _threads().begin(call)
    await to_the_end(call.wait, lambda: call.is_over)
    return call.result()


async def to_the_end(wait: Callable[[], Awaitable[object]], is_over: Callable[[], bool]) -> None:
    """`wait()`, and when this is cancelled do so until it is over: then what is worked on may be closed."""
    try:
        await wait()
    except asyncio.CancelledError:
        while not is_over():
            with contextlib.suppress(asyncio.CancelledError):
                await wait()
        raise


def begin_thread() -> None:
    """See to it that this loop has one, whatever becomes of memory. Raises SourceError if none can begin."""
    try:
        _threads().begin(_Call(asyncio.get_running_loop(), bool, ()))
    except RuntimeError as error:
        raise SourceError(f"there is no thread to read and to store with: {error}") from error


class _Call(Generic[T]):
    """One call in a thread, which the loop is told the end of.

    A future of asyncio's on one of the executor's, shielded from being cancelled, would do the same, at several times the cost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[..., T], arguments: tuple[object, ...]) -> None:
        self._loop = loop
        self._function = function
        self._arguments = arguments
        self._waiter: asyncio.Future[None] | None = None
        self._value: T
        self._error: BaseException | None = None
        self.is_over = False
        self.is_dropped = False

    def run(self) -> None:
        """In the thread."""
        if self.is_dropped:
            return
        try:
            self._value = self._function(*self._arguments)
        except BaseException as error:
            self._error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.is_over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until it is over."""
        if not self.is_over:
            self._waiter = self._loop.create_future()
            await self._waiter

    def result(self) -> T:
        """What it returned, or raise what it raised: once."""
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            self._error = None  # which has this frame, and what it works on, in its traceback


class _Threads:
    """Those of one loop. Once there is one, all that is called is done: when no other can begin, by that one, in turn.

    Not the loop's default executor, which does not tell whether what it could begin no thread for will be done all the same,
    and needs one more to end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_name_prefix="mqcore")
        self._has_one = False

    def begin(self, call: _Call[T]) -> None:
        """Raises RuntimeError if there is no thread, and none can begin."""
        try:
            self._pool.submit(call.run)
            self._has_one = True
        except RuntimeError:  # it is in the queue all the same
            if not self._has_one:
                call.is_dropped = True
                raise


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


def _threads() -> _Threads:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    return _of_loops.get(loop) or _of_loops.setdefault(loop, _Threads())
