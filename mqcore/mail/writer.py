"""Storing what the plugins are done with, in groups."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .. import COMPLETE, FAIL, Outcome
from ._mail import Mail
from .base import Sink
from .errors import SinkError
from .failed import FailedSink
from .report import Report

BATCH = 256
"""At most so many mails are read at once, and stored at once, or a few more."""
BATCH_BYTES = 8 << 20

Finished: TypeAlias = tuple[Mail, Outcome]
Done: TypeAlias = Callable[[Sequence[Finished], bool], object]


class Job:
    """Mails that belong together."""

    __slots__ = ("bad", "done", "good", "mails")

    def __init__(self, mails: Sequence[Finished], done: Done) -> None:
        self.mails = mails
        self.done = done
        self.good: list[Finished] = []
        self.bad: list[Mail] = []
        for finished in mails:
            mail, outcome = finished
            if mail.rejection is not None or outcome is FAIL:
                self.bad.append(mail)
            else:
                self.good.append(finished)


class Writer:
    """Writes mails to the sink, and those that failed or were rejected to `failed`, and counts them.

    What is added while a thread stores a group makes the next one: the slower the disk, the larger the groups. After its
    error nothing more is written to a sink, as it may not be able to undo what it had begun: `on_error` is called, the
    error is in the report, and the next run mends it.
    """

    def __init__(self, sink: Sink, failed: FailedSink | None, report: Report, on_error: Callable[[], object]) -> None:
        self._sink = sink
        self._failed = failed
        self._report = report
        self._on_error = on_error
        self._jobs: deque[Job] = deque()
        self._work = asyncio.Event()
        self._broken: set[Sink | FailedSink] = set()
        self._closed = False

    def add(self, mails: Sequence[Finished], done: Done) -> None:
        """Store these; then `done(mails, stored)` is called in the loop's thread. If not `stored`, none is in the sink.

        At once, if there is nothing to wait for.
        """
        job = Job(mails, done)
        if self._sink.waits or self._broken or job.bad:
            self._jobs.append(job)
            self._work.set()
        else:
            self._sink.store([mail for mail, _ in job.good])
            self._count_stored(job.good)
            done(mails, True)

    def close(self) -> None:
        """Let `run` end when all is stored."""
        self._closed = True
        self._work.set()

    async def run(self) -> None:
        while self._jobs or not self._closed:
            if self._jobs:
                await self._settle(self._next_group())
            else:
                self._work.clear()
                await self._work.wait()

    def _next_group(self) -> list[Job]:
        group: list[Job] = []
        count = size = 0
        while self._jobs and count < BATCH and size < BATCH_BYTES:
            group.append(self._jobs.popleft())
            count += len(group[-1].mails)
            size += sum(len(mail.mime) for mail, _ in group[-1].mails)
        return group

    async def _settle(self, group: list[Job]) -> None:
        """The bad ones first: what cannot be set aside comes again, and the good ones of its job with it."""
        bad = [mail for job in group for mail in job.bad]
        set_aside = await self._store(self._failed, bad)
        good = [one for job in group if set_aside or not job.bad for one in job.good]
        stored = await self._store(self._sink, [mail for mail, _ in good])
        counts = self._report.counts
        counts.unfinished += sum(len(job.mails) for job in group) - set_aside * len(bad) - stored * len(good)
        if set_aside:
            rejected = sum(mail.rejection is not None for mail in bad)
            counts.rejected += rejected
            counts.failed += len(bad) - rejected
        if stored:
            self._count_stored(good)
        for job in group:
            job.done(job.mails, (set_aside or not job.bad) and (stored or not job.good))

    def _count_stored(self, good: Sequence[Finished]) -> None:
        completed = sum(outcome is COMPLETE for _, outcome in good)
        self._report.counts.completed += completed
        self._report.counts.continued += len(good) - completed

    async def _store(self, sink: Sink | FailedSink | None, mails: list[Mail]) -> bool:
        """Whether they are stored. If not, the source still has them."""
        if not mails or sink is None:
            return True
        if sink in self._broken:
            return False
        try:
            if sink.waits:
                await asyncio.to_thread(sink.store, mails)
            else:
                sink.store(mails)
        except SinkError as error:
            self._broken.add(sink)
            self._report.error = self._report.error or str(error)
            self._on_error()
            return False
        return True
