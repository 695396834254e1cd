"""The goals, each a bound on what mqcore costs beside something that was measured in the same run.

One place for all of them. A run fails where a cost is beyond 1.3 times its goal: the rest is room for noise.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOM_FOR_NOISE = 1.3


@dataclass(frozen=True)
class Goal:
    """At most `factor` x the cost of `than`, and `plus` ns; each must be kept with `room` times as much."""

    than: str
    factor: float = 1.0
    plus: float = 0.0

    def allows(self, than_ns: float, room: float = 1.0) -> float:
        """The most that mqcore may cost, in ns, where `than` costs that much."""
        if self.plus:
            return self.factor * than_ns + room * self.plus
        return room * self.factor * than_ns

    def __str__(self) -> str:
        factor = "" if self.plus else f"{self.factor:.2f} x "
        return f"{factor}{self.than}" + (f" + {self.plus:.0f} ns" if self.plus else "")


GOALS = {
    "run_many, 10 plugins": Goal("floor", 1.10),
    "run, 1 plugin": Goal("floor", plus=45),
}
