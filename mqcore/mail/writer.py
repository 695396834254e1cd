"""Storing what the plugins are done with, in groups."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

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


class Job(NamedTuple):
    mails: Sequence[Finished]
    done: Done


class Writer:
    """Writes mails to the sink, and those that failed or were rejected to `failed`, and counts them.

    What is added while a thread stores a group makes the next one: the slower the disk, the larger the groups. After an
    error of a sink nothing more is written, as it may not be able to undo what it had begun: `on_error` is called, the
    error is in the report, and the next run mends it.
    """

    def __init__(self, sink: Sink, failed: FailedSink | None, report: Report, on_error: Callable[[], object]) -> None:
        self._sink = sink
        self._failed = failed
        self._report = report
        self._on_error = on_error
        self._jobs: deque[Job] = deque()
        self._work = asyncio.Event()
        self._broken = False
        self._closed = False

    def add(self, mails: Sequence[Finished], done: Done) -> None:
        """Store these, all or none in the sink; then `done(mails, stored)` is called in the loop's thread.

        At once, if there is nothing to wait for.
        """
        good, bad = _sort(mails)
        if self._sink.waits or self._broken or bad:
            self._jobs.append(Job(mails, done))
            self._work.set()
        else:
            self._sink.store([mail for mail, _ in good])
            self._count_stored(good)
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
        good, bad = _sort(each for job in group for each in job.mails)
        stored = await self._store(self._sink, good)
        if stored:
            self._count_stored(good)
        set_aside = await self._store(self._failed, bad)
        if set_aside:
            rejected = sum(mail.rejection is not None for mail, _ in bad)
            self._report.counts.rejected += rejected
            self._report.counts.failed += len(bad) - rejected
        for job in group:
            job.done(job.mails, stored and set_aside)

    def _count_stored(self, good: Sequence[Finished]) -> None:
        completed = [outcome for _, outcome in good].count(COMPLETE)
        self._report.counts.completed += completed
        self._report.counts.continued += len(good) - completed

    async def _store(self, sink: Sink | FailedSink | None, finished: list[Finished]) -> bool:
        """Whether they are stored. If not, the source still has them."""
        if not finished or sink is None:
            return True
        mails = [mail for mail, _ in finished]
        if not self._broken:
            try:
                if sink.waits:
                    await asyncio.to_thread(sink.store, mails)
                else:
                    sink.store(mails)
            except SinkError as error:
                self._broken = True
                self._report.error = str(error)
                self._on_error()
            else:
                return True
        self._report.counts.unfinished += len(mails)
        return False


def _sort(mails: Iterable[Finished]) -> tuple[list[Finished], list[Finished]]:
    """Those that are for the sink, and the others."""
    good: list[Finished] = []
    bad: list[Finished] = []
    for each in mails:
        mail, outcome = each
        (bad if outcome is FAIL or mail.rejection is not None else good).append(each)
    return good, bad
