"""What the HTTP server shows of workers: each has its series, with the label `worker`; the status page has them together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..server.exposition import Family, Labels, families
from ..server.shown import Moment, Shown
from ..stats import HOLD_TIMES, HookStats
from .commands import WorkersCommands
from .supervisor import Supervisor

NO_HOLDS = (0,) * (len(HOLD_TIMES) + 1)


class ShownWorkers(Shown):
    waits = True

    def __init__(self, supervisor: Supervisor, commands: WorkersCommands) -> None:
        self._supervisor = supervisor
        self._commands = commands
        self._families: list[Family] = []

    @property
    def draining(self) -> bool:
        supervisor = self._supervisor
        return supervisor.is_stopping or supervisor.is_draining or not supervisor.is_ready

    def moment(self) -> Moment:
        """As they told it last, within this second."""
        report = self._supervisor.report()
        counts = report.counts
        columns = zip(*(row.hold_times for row in report.hooks if row.holds), strict=True)
        return Moment(counts.settled - counts.present, sum(row.held for row in report.hooks), [*map(sum, columns)])

    def families(self) -> list[Family]:
        return self._families

    async def as_json(self) -> str:
        figures = await self._commands.figures()
        by_worker: dict[str, list[Family]] = {}
        for worker, each in figures:  # of one slot the new one comes last
            by_worker[str(worker.start.slot)] = families(_as_collected(each), Labels())
        self._families = [*_labelled(by_worker.items()), *self._own_families()]
        return json.dumps(self._commands.together([each for _, each in figures])) if figures else "{}"

    def _own_families(self) -> list[Family]:
        books, slots = self._supervisor.books, self._supervisor.slots
        rows = (
            ("mqcore_workers", "gauge", "Places for workers.", len(slots)),
            ("mqcore_workers_serving", "gauge", "Places that have a worker now.", sum(slot.is_served for slot in slots)),
            ("mqcore_worker_crashes", "counter", "Workers that ended by themselves.", books.crashes),
            ("mqcore_worker_restarts", "counter", "Workers that were started in place of those.", books.restarts),
        )
        return [Family(name, kind, about, [""], [number]) for name, kind, about, number in rows]


def _as_collected(figures: dict[str, Any]) -> dict[str, Any]:
    """As `Figures.collect` has them, of what they are in JSON."""
    rows, oldest = [], []
    for named in figures["plugins"]:
        row = dict(named)
        oldest.append(row.pop("held_oldest"))
        row["hold_times"] = tuple(row["hold_times"] or NO_HOLDS)
        rows.append(HookStats(**row))
    return figures | {"plugins": tuple(rows), "oldest": oldest}


def _labelled(by_worker: Iterable[tuple[str, list[Family]]]) -> list[Family]:
    """Each family once, with the series of all."""
    merged: dict[str, Family] = {}
    for worker, found in by_worker:
        for family in found:
            labels = [_with_worker(written, worker) for written in family.labels]
            if (known := merged.get(family.name)) is not None:
                family = known._replace(labels=[*known.labels, *labels], numbers=[*known.numbers, *family.numbers])
            else:
                family = family._replace(labels=labels, numbers=[*family.numbers])
            merged[family.name] = family
    return list(merged.values())


def _with_worker(written: str, worker: str) -> str:
    name = f'worker="{worker}"'
    return written.replace("{", f"{{{name},", 1) if "{" in written else f"{written}{{{name}}}"
