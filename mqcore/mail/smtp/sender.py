"""Delivering mails to the next server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from ... import Dispatcher
from ...smtp.replies import Reply
from .._writer import Finished
from ..report import Report
from .delivery import Delivery, Sent
from .pool import Pool
from .sink import SmtpSink

PAUSES = (1.0, 5.0, 30.0, 60.0, 120.0, 300.0, 300.0)
"""Seconds until a mail from a file is tried again, time after time. Servers that greylist ask for up to five minutes."""
PATIENCE = 30.0
"""Seconds that transactions have when a run is stopped."""


class Sender:
    """Sends mails to the next server, with the hooks `mq_smtp_out_data` before and `mq_smtp_out_sent` after it.

    If it is `patient`, as for mails from a file, a mail goes to those recipients whom the server takes now, and
    what has a temporary error is tried again after each of `PAUSES`. When there is no server to talk to, the run ends:
    `on_error` is called, and the error is in the report.

    Otherwise it passes on what the server says, as for a client that waits: mails that are sent together go to
    those recipients whom the server takes, but to none if it has a temporary error for any. The others are rejected, and
    with `mixed` there is a place for them; without it nothing is sent unless the server takes all.

    To be used in `async with`, which ends when all is sent and the connections are closed.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        sink: SmtpSink,
        report: Report,
        on_error: Callable[[], object],
        *,
        patient: bool = False,
        mixed: bool = False,
    ) -> None:
        self.data_hook = dispatcher.hook("mq_smtp_out_data")
        self.sent_hook = dispatcher.hook("mq_smtp_out_sent")
        self.sink = sink
        self.counts = report.counts
        self.pauses = PAUSES if patient else ()
        self.pool = Pool(sink.upstream, self.pauses)
        self.is_stopping = False
        self._report = report
        self._on_error = on_error
        self._mixed = mixed
        self._deliveries: set[Delivery] = set()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            await self.pool.close()

    def send(self, mails: Sequence[Finished], sent: Sent) -> Delivery:
        """Send those that no plugin failed or rejected, together; then `sent` is called, in a later turn of the loop."""
        delivery = Delivery(self, mails)
        self._deliveries.add(delivery)
        delivery.task = self._tasks.create_task(delivery.run())
        delivery.task.add_done_callback(lambda task: self._finish(delivery, sent))
        if self.is_stopping:
            delivery.take_back()
        return delivery

    def _finish(self, delivery: Delivery, sent: Sent) -> None:
        self._deliveries.discard(delivery)
        sent(delivery.mails, delivery.is_finished, delivery.is_delivered)

    def blocks(self, reply: Reply) -> bool:
        """Whether nothing is sent to the others either, when the server says this to one recipient."""
        if self.pauses:
            return False
        if self._mixed:
            return reply.is_temporary and not reply.is_too_many
        return not reply.is_positive

    def give_up(self, reason: str) -> None:
        """End the run."""
        self._report.error = reason
        self._on_error()

    def stop(self) -> None:
        """Take back what is not being sent now, and the rest when it takes too long."""
        self.is_stopping = True
        for delivery in list(self._deliveries):
            delivery.take_back()
        asyncio.get_running_loop().call_later(PATIENCE, self.cut)

    def cut(self) -> None:
        """Break off all transactions."""
        for delivery in list(self._deliveries):
            delivery.cut()
