"""The last five minutes, second by second: what the status page draws."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .shown import Shown

PERIOD = 1.0
LENGTH = 300


class Point(NamedTuple):
    """As of one second."""

    time: float
    """In seconds since 1970."""
    mails: int
    """That came and are done with, since the start."""
    held: int
    """Messages, now."""
    lag: float
    """Seconds by which the loop came late to this."""
    hold_times: list[int]
    """Of all plugins, since the start: see `HookStats.hold_times`."""


class History:
    """Takes a point each second, from `start` to `stop`, and calls `told` after each."""

    def __init__(self, shown: Shown, told: Callable[[], object]) -> None:
        self._shown = shown
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.points: deque[Point] = deque(maxlen=LENGTH)
        self.encoded: deque[bytes] = deque(maxlen=LENGTH)
        """The same as JSON."""

    def start(self) -> None:
        self._due = self._loop.time()
        self._take()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _take(self) -> None:
        now = self._loop.time()
        moment = self._shown.moment()
        lag = round(max(0.0, now - self._due), 4)
        self.points.append(Point(round(time.time(), 3), moment.done, moment.held, lag, moment.hold_times))
        self.encoded.append(json.dumps(self.points[-1]).encode())
        self._due = max(self._due + PERIOD, now)  # what was missed is not made up for
        self._timer = self._loop.call_at(self._due, self._take)
        self._told()
