"""The signals by which a run is steered; those that end it are in run.py."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Self

from ..server import ReloadError, Server

STEERING = (signal.SIGHUP, signal.SIGUSR1)


class Steering:
    """SIGHUP reloads, SIGUSR1 writes the status to the log. What comes before there is a server is done when there is one."""

    def __init__(self, signals: Sequence[signal.Signals] = STEERING) -> None:
        """`signals`: those of the two that are heard."""
        self._signals = signals
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._early: list[int] = []

    def __enter__(self) -> Self:
        self._before = {one: signal.signal(one, self._handle) for one in self._signals}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    @contextlib.contextmanager
    def of(self, server: Server) -> Iterator[None]:
        """Within the block, in the coroutine that runs it, this is the server."""
        self._server = server
        self._loop = asyncio.get_running_loop()
        for number in dict.fromkeys(self._early):
            self._loop.call_soon(self._steer, number)
        try:
            yield
        finally:
            self._server = self._loop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._loop is None:
            self._early.append(number)
        else:
            self._loop.call_soon_threadsafe(self._steer, number)

    def _steer(self, number: int) -> None:
        if self._server is None:
            return
        if number == signal.SIGUSR1:
            self._server.log_status()
        else:
            with contextlib.suppress(ReloadError):  # which is in the log
                self._server.reload()
