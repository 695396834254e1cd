"""A uvloop loop whose `time()`, and what asyncio waits for by it, are those of the virtual clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import uvloop

from ..loop import _clock


class VirtualLoop(uvloop.Loop):
    """What is real on it: sockets, processes, threads and signals; and the timeouts of TLS handshakes, which are uvloop's own.

    `jobs`: how many calls of `run_in_executor` and `getaddrinfo` are not over. `connecting`: how many of `create_connection`
    and `create_server`, which look names up by themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0
        self.connecting = 0
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return _clock.now() / 1e9

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (max(round(when * 1e9), _clock.now()), next(self._order), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + max(delay, 0), callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        return self._count(super().run_in_executor(executor, func, *args))

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        self.jobs += 1
        try:
            return await super().getaddrinfo(*args, **options)
        finally:
            self.jobs -= 1

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        self.connecting += 1
        try:
            return await super().create_connection(*args, **options)
        finally:
            self.connecting -= 1

    async def create_server(self, *args: Any, **options: Any) -> Any:
        self.connecting += 1
        try:
            return await super().create_server(*args, **options)
        finally:
            self.connecting -= 1

    def _count(self, future: Any) -> Any:
        self.jobs += 1
        future.add_done_callback(self._uncount)
        return future

    def _uncount(self, future: object) -> None:
        self.jobs -= 1

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked for by asyncio's handles; they are looked at when their time has come."""

    # For the clock

    def count_timers(self) -> int:
        """How many will be called."""
        return sum(not handle.cancelled() for _, _, handle in self._timers)

    def next_timer(self) -> int | None:
        """When the next one is due, in ns of the clock."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def run_due(self) -> bool:
        """Have what is due called in the loop's next turn; whether there is something."""
        any_due = False
        while (due := self.next_timer()) is not None and due <= _clock.now():
            handle = heapq.heappop(self._timers)[2]
            self.call_soon(_run, handle)
            any_due = True
        return any_due


def _run(handle: asyncio.TimerHandle) -> None:
    if not handle.cancelled():
        handle._run()
