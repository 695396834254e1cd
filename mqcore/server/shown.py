"""What the HTTP server shows: here of one process."""

from __future__ import annotations

from typing import NamedTuple

from .exposition import Family, Labels, families
from .figures import Figures, encode
from .server import Server


class Moment(NamedTuple):
    """What the status page draws, as of now."""

    done: int
    """Mails that came and are done with, since the start."""
    held: int
    hold_times: list[int]
    """Of all plugins, since the start: see `HookStats.hold_times`."""


class Shown:
    """The figures of a server that runs. `waits`: whether `families` are those of the last `as_json`, and not of now."""

    waits = False

    def __init__(self, server: Server) -> None:
        self._server = server
        self._figures = Figures(server)
        self._labels = Labels()

    @property
    def draining(self) -> bool:
        """Whether it takes no more."""
        return self._server.draining

    def moment(self) -> Moment:
        counts = self._server.gateway.report.counts
        stats = self._server.dispatcher.stats()
        done = counts.stored + counts.failed + counts.rejected + counts.discarded + counts.unfinished
        columns = zip(*(row.hold_times for row in stats.hooks if row.holds), strict=True)
        return Moment(done, stats.held, [*map(sum, columns)])

    def families(self) -> list[Family]:
        return families(self._figures.collect(), self._labels)

    async def as_json(self) -> str:
        return await encode(self._figures.collect())
