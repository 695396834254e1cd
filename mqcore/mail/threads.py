"""What blocks, in threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

from .errors import SourceError

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call it in a thread, and do not end before it does, though this be cancelled: then what it works on may be closed."""
    running = asyncio.wrap_future(_threads().call(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody asks for it any more
        raise


def begin_thread() -> None:
    """See to it that this loop has one, whatever becomes of memory. Raises SourceError if none can begin."""
    try:
        _threads().call(bool)
    except RuntimeError as error:
        raise SourceError(f"there is no thread to read and to store with: {error}") from error


class _Threads:
    """Those of one loop. Once there is one, all that is called is done: when no other can begin, by that one, in turn.

    Not the loop's default executor, which does not tell whether what it could begin no thread for will be done all the same,
    and needs one more to end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_name_prefix="mqcore")
        self._has_one = False

    def call(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Raises RuntimeError if there is no thread, and none can begin."""
        done: Future[T] = Future()
        try:
            self._pool.submit(self._run, done, function, arguments)
            self._has_one = True
        except RuntimeError:  # it is in the queue all the same
            if not self._has_one:
                done.cancel()
                raise
        return done

    @staticmethod
    def _run(done: Future[T], function: Callable[..., T], arguments: tuple[object, ...]) -> None:
        if done.set_running_or_notify_cancel():
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


def _threads() -> _Threads:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    return _of_loops.get(loop) or _of_loops.setdefault(loop, _Threads())
