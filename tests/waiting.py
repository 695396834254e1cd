"""To wait for something in a test: until it is so, and not for some time in which it should have become so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition gives, once that is true. The bound is no promise of a test, only the end of one that hangs."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not so after {seconds} s: {condition}"
        await asyncio.sleep(0.001)
    return value


def until_in_thread(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The same where there is no loop: for other processes and other threads."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"not so after {seconds} s: {condition}"
        time.sleep(0.002)
    return value
