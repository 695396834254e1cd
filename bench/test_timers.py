"""Timers: started and fired, started and stopped, and reset."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
import uvloop.loop
from building import build
from timing import WAYS


@pytest.mark.parametrize(
    ("case", "work", "count", "rounds"),
    [
        # Many at once, so that what the last of them waits for is little for each.
        ("start and fire", "start_and_fire", 100_000, 7),
        ("start and stop", "start_and_stop", 100_000, 7),
        ("start and stop, one at a time", "start_and_stop_in_turn", 10_000, 20),
        ("reset", "reset", 10_000, 20),
    ],
)
def test_timers(
    loop: Any, against: Callable[..., None], case: str, work: str, count: int, rounds: int, *, short: bool
) -> None:
    """The floor calls libuv from C, without Python."""
    if short:
        count //= 5
    floor = build("_floor_loop")
    floor.open_library(uvloop.loop.__file__)
    floor.open_timers(count)
    with ExitStack() as stack:
        ways = {name: stack.enter_context(closing(way(loop, count))) for name, way in WAYS.items()}
        contenders = {"floor": getattr(floor, work)} | {name: getattr(way, work) for name, way in ways.items()}
        against("timers", case, contenders, rounds=rounds, count=count, before=gc.collect)
