"""What an AMQP sink does with mails: each is published, and is done with when the broker has confirmed it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...amqp.client import ClientOptions, Outcome, Properties, encode_properties
from .._mail import Mail
from ..errors import SinkError
from ..smtp.hostname import own_hostname
from ..verdicts import CANCELLED, Verdict
from ._outcomes import Soon
from ._raw import encode_raw
from .body import write_body
from .connection import Address, Connection, Unreachable
from .declare import check_queue, make_queues
from .publishing import NOT_BEGUN, Group, Publishing

if TYPE_CHECKING:
    from .._gateway import Gateway
    from ..record import Record
    from .url import AmqpUrl

PATIENCE = 30.0
"""Seconds that a client waits for a broker that is away, or takes nothing."""
UNSENT = 64 << 20
"""Octets that wait to be sent where no client waits: bodies that are there anyway until they are confirmed, and are sent from
there. If they waited to be published instead, each would need a task."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds until what a full queue refused is published again, where no client waits."""


class Publish(NamedTuple):
    properties: bytes
    body: bytes


class Publisher(Soon):
    """Publishes for a sink, which lets it `begin` before the first mail and `end` after the last."""

    def __init__(self, where: AmqpUrl, login: tuple[str, str], tls: ssl.SSLContext | None, record: Record | None) -> None:
        """`record`: of what is stored, where mails come from a mailbox."""
        super().__init__(where.exchange, where.queue, raw=where.raw, is_careful=record is not None)
        self._where = where
        self._options = ClientOptions(
            user=login[0],
            password=login[1],
            vhost=where.vhost,
            heartbeat=where.heartbeat,
            properties={"product": "mqcore", "connection_name": f"mqcore to {where.queue}"},
        )
        self._tls = tls
        self._publishing: Publishing | None = None  # until it is begun
        self._hostname = own_hostname()
        self._error: SinkError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._record = record
        self._refusing = 0.0, -1
        """Since when, by the loop's clock, the queue has taken nothing; and how much it had taken before."""

    def figures(self) -> dict[str, Any]:
        return {"amqp_out": NOT_BEGUN if self._publishing is None else self._publishing.figures()}

    # The connection

    def begin(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waits = gateway.source.is_queue or not gateway.source.has_waiting_client
        self._stopping = asyncio.Event()
        where = self._where
        address = Address(where.host, where.port, self._tls)
        counts = gateway.report.counts
        self._publishing = Publishing(address, self._options, self._prepare, self._fail, counts, where.max_message)
        self._publishing.on_change = self._look
        self.begin_soon(self._publishing)
        self._starting = asyncio.create_task(self._start(self._publishing))

    async def _start(self, publishing: Publishing) -> None:
        try:
            await publishing.session.start()
        except Unreachable as error:
            self._fail(error)
        publishing.wake()

    async def _prepare(self, connection: Connection) -> None:
        where = self._where
        if self._waits:
            connection.gather(UNSENT)
        if where.exchange:
            await connection.ask(await connection.open_channel(), connection.protocol.check_exchange, where.exchange)
        elif where.declares:
            await make_queues(connection, where.queue)
        else:
            await check_queue(connection, where.queue)

    def _fail(self, error: Unreachable) -> None:
        self._end_with(str(error))

    def _end_with(self, reason: str) -> None:
        if self._error is None:
            self._error = SinkError(f"cannot publish to {self._where}: {reason}")
            self._gateway.fail(str(self._error))
            self._begun.wake()

    @property
    def _begun(self) -> Publishing:
        assert self._publishing is not None
        return self._publishing

    def _look(self) -> None:
        """While the broker takes nothing, new clients are told, and those that wait do not wait for ever."""
        self._gateway.source.hold_off(self._begun.is_blocked)
        if self._begun.is_blocked and self._timer is None and not self._waits:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._let_go)
        elif not self._begun.is_blocked and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        self._timer = None
        self._begun.let_go()

    async def _ready(self, mails: Sequence[Mail]) -> Connection | None:
        """One that can be published on; None if the run is being stopped meanwhile, or the source has lost these mails. Raises
        SinkError."""
        while True:
            connection = self._begun.connection
            if connection is not None:
                return connection
            if self._error is not None:
                raise self._error
            if self._leaves(mails):
                return None
            await self._begun.change()

    def _leaves(self, mails: Sequence[Mail]) -> bool:
        """Whether what was not published yet stays where it is."""
        return (self._waits and self._gateway.is_stopping) or id(mails) in self.voided

    # Mails

    async def deliver(self, mails: Sequence[Mail], first: Mapping[int, Outcome | None] | None = None) -> Sequence[Verdict]:
        """`first`: the outcomes, if they were published already."""
        verdicts: dict[int, Verdict] = {}
        publishes: dict[int, Publish] = {}
        for number, mail in enumerate(mails):
            try:
                publishes[number] = self.encode(mail)
            except (ValueError, TypeError) as error:
                verdicts[number] = Verdict.failed(error)
        pause = FIRST_PAUSE
        while publishes:
            outcomes = await self._publish(mails, publishes, verdicts) if first is None else first
            first = None
            for number, outcome in outcomes.items():
                verdict = self._verdict(mails, outcome)
                if verdict is not None:
                    verdicts[number] = verdict
                    del publishes[number]
            if any(
                outcome is not None and outcome.kind == "nack" for number, outcome in outcomes.items() if number in publishes
            ):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                pause = min(2 * pause, LONGEST_PAUSE)
        self.voided.discard(id(mails))
        if self._record is not None:
            stored = [mail.origin.id for number, mail in enumerate(mails) if verdicts[number].is_good]
            await self._record.note(stored, {})
        if self._error is not None and CANCELLED in verdicts.values():
            raise self._error
        return [verdicts[number] for number in range(len(mails))]

    def cancel(self, mails: Sequence[Mail]) -> None:
        if not self._waits:
            return
        if self._gateway.is_stopping:
            self._stopping.set()
        elif self._gateway.source.is_queue:
            self.voided.add(id(mails))
        self._begun.wake()

    async def _publish(
        self, mails: Sequence[Mail], publishes: dict[int, Publish], verdicts: dict[int, Verdict]
    ) -> dict[int, Outcome | None]:
        """The outcomes of those that could be published; the others have verdicts then."""
        numbers = list(publishes)
        group = Group(len(numbers))
        where = self._where
        for index, number in enumerate(numbers):
            properties, body = publishes[number]
            chosen = await self._choose(mails, body)
            if isinstance(chosen, Connection):
                try:
                    self._begun.publish(chosen, where.exchange, where.queue, properties, body, group.take, index)
                except ValueError as error:  # its headers are too large
                    chosen = Verdict.failed(error)
                else:
                    continue
            verdicts[number] = chosen
            del publishes[number]
            group.take(index, None)
        await group.done
        return {number: group.outcomes[index] for index, number in enumerate(numbers) if number in publishes}

    async def _choose(self, mails: Sequence[Mail], body: bytes) -> Connection | Verdict:
        """The connection to publish this on, or what becomes of it without."""
        if len(body) > self._begun.most:
            return Verdict.rejected(552, f"5.3.4 a message of {len(body)} octets; the queue takes {self._begun.most}")
        if self._waits:
            return await self._ready(mails) or CANCELLED
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._ready(mails) or CANCELLED
        except TimeoutError:
            return Verdict.deferred(451, "4.3.1 the queue takes nothing now; try again later")

    def _verdict(self, mails: Sequence[Mail], outcome: Outcome | None) -> Verdict | None:
        """None: it is to be published again."""
        kind = "in doubt" if outcome is None else outcome.kind
        if kind == "ack":
            return Verdict.accepted()
        if outcome is not None and kind == "returned":
            self._end_with(f"its messages go to no queue ({outcome.code} {outcome.text})")
            return CANCELLED
        if kind == "nack":
            self._note_refusal()
        if self._waits:
            self._gateway.report.counts.in_doubt += kind == "in doubt"
            return CANCELLED if self._leaves(mails) else None
        if kind == "nack":
            return Verdict.deferred(452, "4.3.1 the queue is full; try again later")
        return Verdict.in_doubt("4.4.2 the queue did not confirm it")

    def _note_refusal(self) -> None:
        if self._refusing[1] != self._begun.acks:
            self._refusing = asyncio.get_running_loop().time(), self._begun.acks
        self._begun.refused(self._refusing[0])

    def encode(self, mail: Mail) -> Publish:
        """Raises ValueError, TypeError for what a plugin put into `json` and there is no room for."""
        known = mail.json
        if self._where.raw:
            return Publish(encode_raw(known, mail.origin.id), mail.mime)
        now = time.time()
        received = mail.origin.received or now
        priority = known.get("priority")
        whole = {
            "received": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(received)),
            "hostname": self._hostname,
            **known,
            "message-id": mail.origin.id,
        }
        if mail.connection is not None:
            whole["connection"] = {"remote-ip": mail.connection.peer, "secure": mail.connection.tls}
        properties = Properties(
            content_type="application/json",
            headers={"x-mqcore-attempt": 1},
            delivery_mode=2,
            message_id=mail.origin.id,
            app_id="mqcore",
            timestamp=int(now),
            priority=priority if type(priority) is int and 0 <= priority < 256 else None,
        )
        return Publish(encode_properties(properties), write_body(mail.mime, whole))

    async def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._starting.cancel()
        await asyncio.wait([self._starting])
        await self._begun.close()
