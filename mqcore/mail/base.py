"""What the command asks of a source and of a sink."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ._mail import Mail
from .message import Origin
from .report import Report


class Run(Protocol):
    """Mail on its way from a source to a sink, as the command sees it."""

    report: Report
    ends_when: str
    """What it waits for after `stop`, for the person who stopped it."""

    @property
    def total(self) -> int | None:
        """What there is to do, for the progress bar; None if nobody knows."""
        ...

    @property
    def done(self) -> int:
        """How much of it is done."""
        ...

    async def run(self) -> Report: ...

    def stop(self, why: signal.Signals | None = None) -> None: ...


class Source(Protocol):
    """Where mail is read from. It is never changed.

    Opened by being made, and read once, in a thread. Everything raises SourceError.
    """

    url: str
    path: Path
    total: int
    """What there is to read, in a unit of the source's own, for the progress bar."""
    done: int

    def __iter__(self) -> Iterator[Origin]: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where mail is written to.

    Opened by being made; `store` is called in a thread, one at a time. Everything raises SinkError.
    """

    url: str
    waits: bool
    """Whether `store` waits for a disk. One that does not never fails, and is called at once, in the loop's thread."""

    @property
    def notes(self) -> Path | None:
        """A file beside the mail, for the reasons why it is there; None if this sink keeps nothing."""
        ...

    def __contains__(self, id: object) -> bool:
        """Whether a mail was stored by an earlier run, by `Origin.id`. Does not change while the sink is open."""
        ...

    def store(self, mails: Sequence[Mail]) -> None:
        """Store a group. When this returns, its mails survive a power failure; if it raises, none of them counts.

        After SinkFull the sink can be used on; after any other SinkError it must be closed.
        """
        ...

    def close(self) -> None: ...
