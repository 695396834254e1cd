"""Compares contenders by rounds that alternate, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import Any

from goals import GOALS


@dataclass
class Row:
    """One line of the table: what mqcore costs, for one message or whatever the case counts, beside its base."""

    group: str
    case: str
    base: str  # the contender that all are compared with: the floor, or where there is none a peer
    base_cost: float
    mqcore_cost: float
    ratio: float  # mqcore / base: median of the rounds' ratios
    spread: float  # half of the range that the middle half of the ratios has, as a part of the ratio
    peers: dict[str, float] = field(default_factory=dict)  # each as a multiple of the base
    goal: str = ""
    kept: bool | None = None  # the goal; None where there is none
    bound_kept: bool = True
    unit: str = "ns"
    at: float | None = None  # the place on the plot's axis, where the group is about growth

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def row_of(group: str, case: str, rounds: dict[str, list[float]], unit: str = "ns") -> Row:
    """Make a row of what was measured: costs, round by round, of "mqcore" and of the others. The first is the base."""
    base = next(iter(rounds))
    ratios = {
        name: [each / floor for each, floor in zip(times, rounds[base], strict=True)] for name, times in rounds.items()
    }
    low, middle, high = statistics.quantiles(ratios["mqcore"], n=4)
    row = Row(
        group,
        case,
        base,
        base_cost=statistics.median(rounds[base]),
        mqcore_cost=statistics.median(rounds["mqcore"]),
        ratio=middle,
        spread=(high - low) / 2 / middle if middle else 0.0,  # some memory costs nothing
        unit=unit,
        peers={name: statistics.median(each) for name, each in ratios.items() if name not in (base, "mqcore")},
    )
    goal = GOALS.get(case)
    if goal is not None:
        costs = [dict(zip(rounds, each, strict=True)) for each in zip(*rounds.values(), strict=True)]
        row.goal = goal.text(unit)
        row.kept = statistics.median(each["mqcore"] - goal.allows(each, 1.0) for each in costs) <= 0
        row.bound_kept = statistics.median(each["mqcore"] - goal.allows(each, goal.room) for each in costs) <= 0
    return row


def compare(
    benchmark: Any,
    group: str,
    case: str,
    contenders: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    count: int,
    counts: dict[str, int] | None = None,
    before: Callable[[], Any] | None = None,
    at: float | None = None,
) -> Row:
    """Measure "mqcore" and the others, each of which does `count` pieces of work per call, or what `counts` says.

    pytest-benchmark times mqcore; its set-up of each round times the others. Before each the base runs, untimed,
    so that all find the same caches; or `before` is called.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    base_name = next(iter(contenders))
    work = dict.fromkeys(contenders, count) | (counts or {})
    others = [name for name in contenders if name not in (base_name, "mqcore")]

    if before is None:
        before = contenders[base_name]

    def measure_others() -> None:
        for name in (*others, base_name):
            before()
            start = perf_counter_ns()
            contenders[name]()
            times[name].append((perf_counter_ns() - start) / work[name])
        before()

    benchmark.group = group
    benchmark.name = case
    benchmark.pedantic(contenders["mqcore"], setup=measure_others, rounds=rounds, warmup_rounds=1)
    times["mqcore"] = [seconds * 1e9 / work["mqcore"] for seconds in benchmark.stats.stats.data]
    row = row_of(group, case, {name: each[-rounds:] for name, each in times.items()})
    row.at = at
    return row
