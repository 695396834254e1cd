"""What a run did."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from ..stats import HookStats
from ._counts import Cell, Row

OK, SOME_FAILED, USAGE, BAD_PLUGIN, UNREACHABLE = range(5)
"""The exit codes of the command. A run that was stopped by a signal ends with 128 and the signal's number."""


class Counts(Row):
    """Mails, by what became of them. `read` counts them all; when a run is over, those down to `unfinished` add up to it."""

    __slots__ = ()

    read = Cell(0)
    present = Cell(1)
    """In the sink already, from an earlier run; no plugin saw them."""
    continued = Cell(2)
    """Stored, after the last plugin."""
    completed = Cell(3)
    """Stored, after a plugin that skipped the others."""
    failed = Cell(4)
    """Their step failed."""
    rejected = Cell(5)
    """Refused by a plugin or by the next server."""
    discarded = Cell(6)
    """Accepted and dropped, as a plugin wanted."""
    retried = Cell(7)
    """Put back into the queue they came from, for a later time."""
    unfinished = Cell(8)
    """Given up, as the run was stopped or the sink failed, or the client went away. The source still has them."""
    unanswered = Cell(9)
    """Of those that are stored: their client went away before it was told, so it may send them again."""
    in_doubt = Cell(10)
    """Times that a mail was sent to the next server and the connection broke before the answer, or the answer could not be
    noted, or not be passed on, so that it may be there twice: it is sent again, or stays with its source. And rejected mails
    that are where failed mails go, while others of their transaction could not be stored, so that all of it comes again."""
    redelivered = Cell(11)
    """Read from a queue that had given them to somebody before: so many at most may be there twice."""
    returned = Cell(12)
    """Messages that went to no queue."""
    nacked = Cell(13)
    """Times that a queue refused a message, as it was full."""
    reconnects = Cell(14)
    """Times that a connection to a broker was made again."""
    in_clear = Cell(15)
    """Mails that the next server got in the clear because its STARTTLS had failed for long enough."""

    def __init__(self, memory: mmap | None = None, **values: int) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Counts({', '.join(f'{name}={value}' for name, value in self.as_dict().items() if value)})"

    @property
    def stored(self) -> int:
        return self.continued + self.completed

    @property
    def settled(self) -> int:
        """Those of which it is known what became of them: of all that were read, when the run is over."""
        ended = self.present + self.stored + self.failed + self.rejected + self.discarded + self.retried
        return ended + self.unfinished

    def as_dict(self) -> dict[str, int]:
        """By name, without `stored`, which follows from others."""
        return {name: getattr(self, name) for name in COUNTED}

    def add(self, other: Counts) -> None:
        for name, value in other.as_dict().items():
            setattr(self, name, getattr(self, name) + value)


COUNTED = tuple(name for name, each in vars(Counts).items() if isinstance(each, Cell))
"""The names of what is counted."""


@dataclass(slots=True)
class Report:
    """What a run did, as the closing table shows it."""

    counts: Counts
    finite: bool = True
    """Whether the source ends by itself. Then the exit code tells whether all of it is in the sink, otherwise whether all that
    was accepted is."""
    seconds: float = 0.0
    stopped: signal.Signals | None = None
    """The signal that ended the run early."""
    error: str | None = None
    """What was wrong with the source or the sink, or ended the run otherwise."""
    error_code: int = UNREACHABLE
    hooks: tuple[HookStats, ...] = ()
    refusals: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By stage and code: of mails, and at the stages of SMTP before there is one, of which a client may have told in vain."""

    workers: list[dict[str, Any]] | None = None
    """One for each place of a worker; None of a run without workers."""
    crashes: int = 0
    """Workers that ended by themselves."""
    restarts: int = 0

    @property
    def per_second(self) -> float:
        passed = self.counts.read - self.counts.present - self.counts.unfinished
        return passed / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        if self.error is not None:
            return self.error_code
        if not self.finite:
            return OK
        if self.stopped is not None:
            return 128 + self.stopped
        return SOME_FAILED if self.counts.failed or self.counts.rejected or self.counts.unfinished else OK

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "messages": self.counts.as_dict() | {"stored": self.counts.stored},
            "seconds": round(self.seconds, 6),
            "per_second": round(self.per_second, 1),
            "refusals": [
                {"stage": stage, "code": code, "count": count} for (stage, code), count in sorted(self.refusals.items())
            ],
            "plugins": [hook._asdict() for hook in self.hooks],
            "stopped": self.stopped.name if self.stopped else None,
            "error": self.error,
            "exit_code": self.exit_code,
            **self._of_workers(),
        }

    def _of_workers(self) -> dict[str, Any]:
        return {} if self.workers is None else {"workers": self.workers, "crashes": self.crashes, "restarts": self.restarts}
