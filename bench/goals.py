"""The goals, each a bound on what mqcore costs beside something that was measured in the same run.

One place for all of them. A run fails where a cost is beyond 1.3 times its goal: the rest is room for noise.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOM_FOR_NOISE = 1.3


@dataclass(frozen=True)
class Goal:
    """At most `factor` x the cost of `than`, or `plus` more than that; without `than`, at most `plus`.

    In the unit of the row: ns for each piece of work, or bytes.
    """

    than: str = ""
    factor: float = 1.0
    plus: float = 0.0

    def allows(self, than_cost: float, room: float = 1.0) -> float:
        """The most that mqcore may cost where `than` costs that much, with `room` times as much allowed."""
        if self.plus:
            return than_cost + room * self.plus
        return room * self.factor * than_cost

    def text(self, unit: str) -> str:
        """As the table has it."""
        if not self.than:
            return f"{self.plus:g} {unit}"
        return f"{self.than} + {self.plus:g} {unit}" if self.plus else f"{self.factor:.2f} x {self.than}"


GOALS = {
    "run_many, 10 plugins": Goal("floor", 1.10),
    "run, 1 plugin": Goal("floor", plus=45),
    "100k held": Goal(plus=400),
    "100k held, Python subclass": Goal(plus=400),
    "100k held, beyond the message": Goal(plus=64),
    "1M held, beside 10k held": Goal("10k held", 1.20),
}
