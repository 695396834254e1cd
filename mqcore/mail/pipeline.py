"""From a source, through the plugins, to a sink."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator

from .. import COMPLETE, FAIL, Cancelled, Dispatcher, Outcome
from .base import Sink, Source
from .errors import SinkError, SourceError
from .failed import FailedSink
from .message import Mail, Origin
from .report import Counts, Report

HOOK = "mq_smtp_in_message"
BATCH = 256
"""At most so many mails are read at once, and stored at once."""
BATCH_BYTES = 8 << 20
IN_FLIGHT_BYTES = 64 << 20
"""No more is read while the mails in flight have so many bytes: a thousand big ones must not fill the memory."""


class Pipeline:
    """Moves each mail of `source` through the hook `mq_smtp_in_message` to `sink`.

    At most `max_in_flight` mails are on the way: in a plugin's hands, or to be stored. The source is read and the sinks
    are written by threads, in batches; all else happens on the loop's thread.

    A mail that fails or is rejected goes to `failed`, as the source had it; without `failed` it is only counted.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        source: Source,
        sink: Sink,
        failed: FailedSink | None = None,
        *,
        max_in_flight: int = 1000,
    ) -> None:
        self.report = Report(Counts())
        self.source = source
        self._sink = sink
        self._failed = failed
        self._dispatcher = dispatcher
        self._hook = dispatcher.hook(HOOK)
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._bytes = 0
        self._in_plugins: set[Mail] = set()  # the dispatcher refers to what is held but weakly
        self._finished: deque[tuple[Mail, Outcome]] = deque()
        self._stopping = False
        self._broken = False
        self._all_read = False
        self._room = asyncio.Event()
        self._work = asyncio.Event()

    async def run(self) -> Report:
        """Once. Ends when all mails are stored, after `stop`, or when the source or a sink failed: see the report."""
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._write())
        self.report.seconds = time.perf_counter() - begin
        self.report.hooks = self._dispatcher.stats().hooks
        return self.report

    def stop(self, why: signal.Signals | None = None) -> None:
        """End the run early: read no more, take back what plugins hold, and store what they are done with."""
        if self._stopping:
            return
        self._stopping = True
        self.report.stopped = why
        self._room.set()
        for mail in list(self._in_plugins):
            self._dispatcher.cancel(mail)

    async def _read(self) -> None:
        origins = iter(self.source)
        while batch := await self._next_batch(origins):
            self._begin(batch)
        self._all_read = True
        self._work.set()

    async def _next_batch(self, origins: Iterator[Origin]) -> list[Mail]:
        """Wait until there is room, and read. Empty at the end, which may be of the source or of the run."""
        while self._in_flight >= self._max_in_flight or self._bytes >= IN_FLIGHT_BYTES:
            self._room.clear()
            await self._room.wait()
            if self._stopping:
                return []
        if self._stopping or self.report.error is not None:
            return []
        batch = await asyncio.to_thread(self._take, origins, min(BATCH, self._max_in_flight - self._in_flight))
        if self._stopping:
            self.report.counts.unfinished += len(batch)
            return []
        return batch

    def _take(self, origins: Iterator[Origin], limit: int) -> list[Mail]:
        mails: list[Mail] = []
        size = 0
        try:
            for origin in origins:
                self.report.counts.read += 1
                if origin.id in self._sink:
                    self.report.counts.present += 1
                else:
                    mails.append(Mail.read(origin))
                    size += len(origin.mime)
                if self._stopping or len(mails) == limit or size >= BATCH_BYTES:
                    break
        except SourceError as error:
            self.report.error = str(error)
        return mails

    def _begin(self, batch: list[Mail]) -> None:
        self._in_flight += len(batch)
        self._bytes += _size(batch)
        self._in_plugins.update(batch)
        for mail, outcome in zip(batch, self._hook.run_many(batch, done=self._finish), strict=True):
            if outcome is not None:
                self._finish(mail, outcome)

    def _finish(self, mail: Mail, outcome: Outcome) -> None:
        self._in_plugins.discard(mail)
        self._finished.append((mail, outcome))
        self._work.set()

    async def _write(self) -> None:
        while not (self._all_read and self._in_flight == 0):
            if self._finished:
                await self._settle(self._next_group())
            else:
                self._work.clear()
                await self._work.wait()

    def _next_group(self) -> list[tuple[Mail, Outcome]]:
        """Whatever is finished by now, within bounds: the slower the disk, the larger the groups."""
        group: list[tuple[Mail, Outcome]] = []
        size = 0
        while self._finished and len(group) < BATCH and size < BATCH_BYTES:
            group.append(self._finished.popleft())
            size += len(group[-1][0].mime)
        return group

    async def _settle(self, group: list[tuple[Mail, Outcome]]) -> None:
        """Store a group, count it, and make room for others."""
        counts = self.report.counts
        good: list[tuple[Mail, Outcome]] = []
        bad: list[Mail] = []
        for mail, outcome in group:
            if self._stopping and isinstance(mail.error, Cancelled):
                counts.unfinished += 1
            elif mail.rejection is not None or outcome is FAIL:
                bad.append(mail)
            else:
                good.append((mail, outcome))
        if await self._store(self._sink, [mail for mail, _ in good]):
            completed = sum(outcome is COMPLETE for _, outcome in good)
            counts.completed += completed
            counts.continued += len(good) - completed
        if await self._store(self._failed, bad):
            rejected = sum(mail.rejection is not None for mail in bad)
            counts.rejected += rejected
            counts.failed += len(bad) - rejected
        self._in_flight -= len(group)
        self._bytes -= _size(mail for mail, _ in group)
        self._room.set()

    async def _store(self, sink: Sink | FailedSink | None, mails: list[Mail]) -> bool:
        """Whether they are stored. If not, no more is written: the next run finds these mails in the source."""
        if not mails or sink is None:
            return True
        if not self._broken:
            try:
                await asyncio.to_thread(sink.store, mails)
            except SinkError as error:
                self._broken = True
                self.report.error = str(error)
                self.stop()
            else:
                return True
        self.report.counts.unfinished += len(mails)
        return False


def _size(mails: Iterable[Mail]) -> int:
    return sum(len(mail.origin.mime) for mail in mails)
