"""Delivering mails to the next server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from ...smtp.replies import Reply
from .._mail import Mail
from ..verdicts import Verdict
from ._soon import Soon
from .delivery import Delivery, find_forwarded, run_all
from .pool import Pool

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .outgoing import Client
    from .sink import SmtpSink

PAUSES = (1.0, 5.0, 30.0, 60.0, 120.0, 300.0, 300.0)
"""Seconds until a mail for which no client waits is tried again, time after time. Greylisting takes five minutes."""
QUEUE_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between tries to connect for mails from a queue, which then goes without them until the server is there."""
GOODBYE = 3.0
"""Seconds that the next server has for all goodbyes."""


class Sender:
    """Sends mails to the next server, with the hooks `mq_smtp_out_data` before and `mq_smtp_out_sent` after it,
    for which no client waits.

    If no client waits, as for mails from a file, a mail goes to those recipients whom the server takes now, and what has a
    temporary error is tried again after each of `PAUSES`. When there is no server to talk to, the run ends.

    Otherwise it passes on what the server says: mails that are sent together go to those recipients whom the server takes, but
    to none if it has a temporary error for any. The others are rejected, where there is a place for failed mails; without
    it nothing is sent unless the server takes all. Where each is told its own, what it says to one holds back no other; nor
    does it for mails from a queue, each of which knows itself for whom it is to come again.
    """

    def __init__(self, gateway: Gateway, sink: SmtpSink) -> None:
        self.data_hook = gateway.dispatcher.hook("mq_smtp_out_data")
        self.sent_hook = gateway.dispatcher.hook("mq_smtp_out_sent")
        self.gateway = gateway
        self.sink = sink
        self.counts = gateway.report.counts
        self.replies: Counter[int | None] = Counter()
        """What the server said of each recipient in the end, by code; None: it did not."""
        source = gateway.source
        self.from_queue = source.is_queue
        self.pauses = () if source.has_waiting_client else PAUSES
        self.together = source.has_waiting_client and not (source.settles_each or source.is_queue)
        self.pool = Pool(sink.upstream, QUEUE_PAUSES if source.is_queue else self.pauses, gateway.processes)
        probes = source.has_waiting_client and not source.is_queue
        self._probe = asyncio.create_task(self.pool.probe()) if probes else None
        self._mixed = gateway.failed is not None
        self._deliveries: dict[int, Delivery] = {}
        self.sent: dict[int, Sequence[Mail]] = {}
        """Of what was delivered or refused, and is not settled yet."""
        self.soon = Soon(self, find_forwarded)

    @property
    def is_stopping(self) -> bool:
        """Whether mails are left where they are, as no client waits for them."""
        return self.gateway.is_stopping and (self.from_queue or not self.gateway.source.has_waiting_client)

    async def send(self, mails: Sequence[Mail], *, begun: Client | None = None) -> list[Verdict]:
        """Send these together; `begun`: on this connection that has begun already."""
        self.pool.arrived(mails)
        delivery = Delivery(self, mails, begun)
        self._deliveries[id(mails)] = delivery
        try:
            verdicts = await delivery.run()
            if delivery.sent:
                self.sent[id(mails)] = delivery.sent
            return verdicts
        finally:
            del self._deliveries[id(mails)]
            self.pool.look()

    def settled(self, mails: Sequence[Mail]) -> Coroutine[Any, Any, None] | None:
        """What is left to do with mails that were sent: `mq_smtp_out_sent`, which changes nothing any more."""
        sent = self.sent.pop(id(mails), None)
        return None if sent is None or not self.soon.runs_sent_hook else self._run_sent_hook(sent)

    async def _run_sent_hook(self, mails: Sequence[Mail]) -> None:
        await run_all(self.sent_hook, mails)

    def cancel(self, mails: Sequence[Mail]) -> None:
        """End it, unless the server is being talked to, or has a part of it already and the client must learn of that."""
        if (delivery := self._deliveries.get(id(mails))) is not None:
            delivery.cancel()
        else:
            self.pool.cancel(mails)

    def blocks(self, reply: Reply) -> bool:
        """Whether nothing is sent to the others either, when the server says this to one recipient."""
        if not self.together:
            return False
        if self._mixed:
            return reply.is_temporary and not reply.is_too_many
        return not reply.is_positive

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        try:
            async with asyncio.timeout(GOODBYE):
                await self.pool.close()
        except TimeoutError:
            pass  # it keeps silent
        if self.sink.record is not None:
            await self.sink.record.written()
