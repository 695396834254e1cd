"""How a dispatcher's loop is watched: `Dispatcher(plugins, watchdog=0.5)`, or with more to say a `Watchdog`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .loop._watchdog import can_dump

SHORTEST = 0.01
LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class Watchdog:
    """A hook or callback that keeps the loop for longer than `limit` seconds is told of while it does, with plugin and hook, on
    standard error and by a C thread, so also while it keeps the GIL; the Python stack follows in the log, `mqcore.watchdog`, as
    soon as the GIL can be had.

    `limit`: 0.01 to 3600. `abort`: after so many seconds, more than `limit`, the process ends, with the stacks of all threads
    (SIGABRT); 0: never. `unsafe_stack`: write the stack at once, without the GIL, which may crash the process: for those who
    hunt what keeps the GIL. `json`: the lines are JSON.

    Raises ValueError for times out of range, and where this Python cannot write a stack without the GIL: it needs 3.11, 3.12 or
    3.15.
    """

    limit: float
    abort: float = 0.0
    unsafe_stack: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if not SHORTEST <= self.limit <= LONGEST:
            raise ValueError(f"watchdog is a limit in seconds, {SHORTEST} to {LONGEST:g}, or 0 for none, not {self.limit!r}")
        if self.abort and not (self.limit < self.abort < math.inf):
            raise ValueError(f"the watchdog's abort comes after its limit, {self.limit:g} s, not after {self.abort!r} s")
        if self.unsafe_stack and not can_dump():
            raise ValueError("this Python has no function for a stack without its lock; unsafe_stack needs 3.11, 3.12 or 3.15")


def watchdog_of(order: object) -> Watchdog | None:
    """What `Dispatcher(watchdog=...)` means."""
    if isinstance(order, Watchdog):
        return order
    if order is None or (isinstance(order, (int, float)) and order == 0):
        return None
    if isinstance(order, bool) or not isinstance(order, (int, float)):
        raise TypeError(f"watchdog is a number of seconds, 0 for none, or a Watchdog, not {order!r}")
    return Watchdog(float(order))
