"""From a source, through the plugins, to a sink."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence

from .. import FAIL, Cancelled, Dispatcher, Outcome
from ._mail import Mail
from ._writer import BATCH, BATCH_BYTES, Finished, Writer
from .base import Sink, Source
from .errors import SourceError
from .failed import FailedSink
from .message import Origin
from .report import Counts, Report
from .smtp.sink import make_sender

HOOK = "mq_smtp_in_message"
IN_FLIGHT_BYTES = 64 << 20
"""No more is read while the mails in flight have so many bytes: a thousand big ones must not fill the memory."""


class Pipeline:
    """Moves each mail of `source` through the hook `mq_smtp_in_message` to `sink`; if that is a server, by a `Sender`.

    At most `max_in_flight` mails are on the way: in a plugin's hands, or to be stored. The source is read and the sinks
    are written by threads, in batches; all else happens on the loop's thread.

    A mail that fails or is rejected goes to `failed`, as the source had it; without `failed` it is only counted.
    """

    ends_when = "what the plugins are done with is stored"

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
        self._source = source
        self._sink = sink
        self._writer = Writer(sink, failed, self.report, self.stop)
        self._sender = make_sender(dispatcher, sink, self.report, self.stop, patient=True)
        if self._sender is not None:
            self.ends_when = "the transactions that are open are over"
        self._dispatcher = dispatcher
        self._hook = dispatcher.hook(HOOK)
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._bytes = 0
        self._in_plugins: set[Mail] = set()  # the dispatcher refers to what is held but weakly
        self._stopping = False
        self._all_read = False
        self._room = asyncio.Event()

    @property
    def total(self) -> int:
        return self._source.total

    @property
    def done(self) -> int:
        return self._source.done

    async def run(self) -> Report:
        """Once. Ends when all mails are stored, after `stop`, or when the source or a sink failed: see the report."""
        begin = time.perf_counter()
        async with self._sender or contextlib.nullcontext(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._writer.run())
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
        if self._sender is not None:
            self._sender.stop()

    async def _read(self) -> None:
        origins = iter(self._source)
        while batch := await self._next_batch(origins):
            self._begin(batch)
        self._all_read = True
        self._close_if_done()

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
        self._bytes += sum(len(mail.origin.mime) for mail in batch)
        self._in_plugins.update(batch)
        for mail, outcome in zip(batch, self._hook.run_many(batch, done=self._finish), strict=True):
            if outcome is not None:
                self._finish(mail, outcome)

    def _finish(self, mail: Mail, outcome: Outcome) -> None:
        self._in_plugins.discard(mail)
        if self._stopping and isinstance(mail.error, Cancelled):
            self._take_back(((mail, outcome),))
        elif self._sender is not None and outcome is not FAIL and mail.rejection is None:
            self._sender.send(((mail, outcome),), self._after_sending)
        else:
            self._writer.add(((mail, outcome),), self._make_room)

    def _after_sending(self, mails: Sequence[Finished], finished: bool, delivered: bool) -> None:
        if finished:
            self._writer.add(mails, self._after_noting if delivered else self._make_room)
        else:
            self._take_back(mails)

    def _after_noting(self, mails: Sequence[Finished], noted: bool) -> None:
        if not noted:  # the next run does not know of those that are delivered to all, and sends them again
            self.report.counts.in_doubt += sum(mail.rejection is None for mail, _ in mails)
        self._make_room(mails)

    def _take_back(self, mails: Sequence[Finished]) -> None:
        self.report.counts.unfinished += len(mails)
        self._make_room(mails)

    def _make_room(self, mails: Sequence[Finished], stored: bool = False) -> None:
        self._in_flight -= len(mails)
        self._bytes -= sum(len(mail.origin.mime) for mail, _ in mails)
        self._room.set()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._all_read and self._in_flight == 0:
            self._writer.close()
