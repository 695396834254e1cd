"""What all workers did, those that are gone too."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..mail.report import Counts, Report
from ..stats import HookStats
from .process import Worker

LARGEST = ("longest",)
NOW = ("held",)
"""What is not of workers that are gone."""


class Books:
    """Of one run. What workers count is read where they count it."""

    def __init__(self, slots: int) -> None:
        self.crashes = self.restarts = 0
        self._gone = Counts()
        self._hooks: dict[tuple[str, str], dict[str, Any]] = {}
        self._refusals: Counter[tuple[str, int]] = Counter()
        self._of_slots = [_OfSlot() for _ in range(slots)]

    def began(self, worker: Worker) -> None:
        self._of_slots[worker.start.slot].starts += 1

    def ended(self, worker: Worker, *, crashed: bool) -> None:
        """What it had in hand is not finished."""
        counts = worker.page.counts
        counts.unfinished += max(0, counts.read - counts.settled)
        self._gone.add(counts)
        of_slot = self._of_slots[worker.start.slot]
        of_slot.counts.add(counts)
        of_slot.ended = worker.why
        if crashed:
            self.crashes += 1
            of_slot.crashes += 1
        for row in worker.hooks.values():
            _add_row(self._hooks, row | dict.fromkeys(NOW, 0))
        self._refusals += _counter(worker.refusals)

    def counts(self, alive: Iterable[Worker]) -> Counts:
        total = Counts()
        for counts in (self._gone, *(worker.page.counts for worker in alive)):
            total.add(counts)
        return total

    def report(self, alive: Iterable[Worker], seconds: float) -> Report:
        """As of one run."""
        alive = list(alive)
        hooks = {key: dict(row) for key, row in self._hooks.items()}
        refusals = self._refusals.copy()
        for worker in alive:
            for row in worker.hooks.values():
                _add_row(hooks, row)
            refusals += _counter(worker.refusals)
        rows = tuple(HookStats(**row) for row in hooks.values())
        workers = [
            of_slot.as_dict(number, next((one for one in alive if one.start.slot == number), None))
            for number, of_slot in enumerate(self._of_slots)
        ]
        report = Report(self.counts(alive), finite=False, seconds=seconds, hooks=rows, refusals=refusals)
        report.workers, report.crashes, report.restarts = workers, self.crashes, self.restarts
        return report


class _OfSlot:
    """The workers of one slot, one after the other."""

    def __init__(self) -> None:
        self.starts = self.crashes = 0
        self.counts = Counts()
        self.ended: str | None = None

    def as_dict(self, number: int, alive: Worker | None) -> dict[str, Any]:
        counts = Counts()
        for each in (self.counts, *([alive.page.counts] if alive is not None else [])):
            counts.add(each)
        return {
            "slot": number,
            "pid": None if alive is None else alive.pid,
            "starts": self.starts,
            "crashes": self.crashes,
            "ended": self.ended,
            "messages": counts.as_dict() | {"stored": counts.stored},
        }


def _add_row(rows: dict[tuple[str, str], dict[str, Any]], row: dict[str, Any]) -> None:
    """To those of the same plugin and hook."""
    key = row["plugin"], row["hook"]
    known = rows.get(key)
    if known is None:
        rows[key] = row | {"hold_times": tuple(row["hold_times"])}
        return
    for name, value in row.items():
        if name == "hold_times":
            known[name] = tuple(map(operator.add, known[name], value))
        elif name in LARGEST:
            known[name] = max(known[name], value)
        elif name not in ("plugin", "hook"):
            known[name] += value


def _counter(refusals: Iterable[Iterable[Any]]) -> Counter[tuple[str, int]]:
    return Counter({(stage, code): count for stage, code, count in refusals})
