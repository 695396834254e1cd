"""What an AMQP sink does with mails: each is published, and is done with when the broker has confirmed it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...amqp.client import (
    Blocked,
    ChannelClosed,
    ClientOptions,
    ConnectionClosed,
    Event,
    Outcome,
    Properties,
    Unblocked,
    encode_properties,
)
from .._mail import Mail
from ..errors import SinkError
from ..smtp.hostname import own_hostname
from ..verdicts import CANCELLED, Verdict
from .body import RAW, write_body
from .connection import Address, Connection, Unreachable, Writable
from .declare import check_queue, make_queues
from .session import Session

if TYPE_CHECKING:
    from .._gateway import Gateway
    from ..record import Record
    from .url import AmqpUrl

PATIENCE = 30.0
"""Seconds that a client waits for a broker that is away, or takes nothing."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds until what a full queue refused is published again, where no client waits."""

_TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


class Publish(NamedTuple):
    properties: bytes
    body: bytes


class Group:
    """What was published together: the outcome of each; None if nobody waits for it any more."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = count

    def take(self, index: int, outcome: Outcome | None) -> None:
        self.outcomes[index] = outcome
        self._left -= 1
        if self._left == 0 and not self.done.done():
            self.done.set_result(None)


class Publisher:
    """Publishes for a sink, which lets it `begin` before the first mail and `end` after the last."""

    def __init__(self, where: AmqpUrl, login: tuple[str, str], tls: ssl.SSLContext | None, record: Record | None) -> None:
        """`record`: of what is stored, where mails come from a mailbox."""
        self._where = where
        self._options = ClientOptions(
            user=login[0],
            password=login[1],
            vhost=where.vhost,
            heartbeat=where.heartbeat,
            properties={"product": "mqcore", "connection_name": f"mqcore to {where.queue}"},
        )
        self._tls = tls
        self._session: Session | None = None  # until it is begun
        self._most = where.max_message
        self._hostname = own_hostname()
        self._pending: dict[int, tuple[Group, int]] = {}
        self._outcomes: Counter[str] = Counter()
        self._is_blocked = False
        self._error: SinkError | None = None
        self._news: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._record = record

    def figures(self) -> dict[str, Any]:
        session = self._session
        return {
            "amqp_out": {
                "connections": int(session is not None and session.connection is not None),
                "reconnects": 0 if session is None else session.reconnects,
                "confirms": dict(self._outcomes),
                "unconfirmed": len(self._pending),
                "blocked": self._is_blocked,
            }
        }

    # The connection

    def begin(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waits = not gateway.source.has_waiting_client
        self._stopping = asyncio.Event()
        where = self._where
        address = Address(where.host, where.port, self._tls)
        self._session = Session(address, self._options, self._set_up, self._hear, self._fail)
        self._starting = asyncio.create_task(self._start(self._session))

    async def _start(self, session: Session) -> None:
        try:
            await session.start()
        except Unreachable as error:
            self._fail(error)
        self._wake()

    async def _set_up(self, connection: Connection) -> None:
        where = self._where
        if where.exchange:
            await connection.ask(await connection.open_channel(), connection.protocol.check_exchange, where.exchange)
        elif where.declares:
            await make_queues(connection, where.queue)
        else:
            await check_queue(connection, where.queue)
        self._is_blocked = False
        self._channel = await connection.open_channel(confirms=True)
        asyncio.get_running_loop().call_soon(self._wake)

    def _fail(self, error: Unreachable) -> None:
        self._end_with(str(error))

    def _end_with(self, reason: str) -> None:
        if self._error is None:
            self._error = SinkError(f"cannot publish to {self._where}: {reason}")
            self._gateway.fail(str(self._error))
            self._wake()

    def _hear(self, event: Event | Writable) -> None:
        if isinstance(event, Outcome):
            self._outcomes[event.kind] += 1
            waiting = self._pending.pop(event.tag, None)
            if waiting is not None:
                waiting[0].take(waiting[1], event)
        elif isinstance(event, Blocked):
            self._is_blocked = True
            if self._timer is None and not self._waits:
                self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._let_go)
        elif isinstance(event, Unblocked | ConnectionClosed):
            self._is_blocked = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._wake()
        elif isinstance(event, ChannelClosed):
            found = _TOO_LARGE.search(event.text)
            if found is not None:  # it is not announced
                self._most = min(self._most, int(found[1]))
        elif isinstance(event, Writable):
            self._wake()

    def _let_go(self) -> None:
        """The broker takes nothing, and clients have waited long enough."""
        self._timer = None
        pending, self._pending = self._pending, {}
        for group, index in pending.values():
            group.take(index, None)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
        self._news = None

    async def _ready(self) -> Connection | None:
        """One that can be published on; None if the run is being stopped meanwhile. Raises SinkError."""
        while True:
            connection = None if self._session is None else self._session.connection
            if connection is not None and connection.is_writable and not self._is_blocked:
                return connection
            if self._error is not None:
                raise self._error
            if self._waits and self._gateway.is_stopping:
                return None
            self._news = self._news or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._news)

    # Mails

    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        verdicts: dict[int, Verdict] = {}
        publishes: dict[int, Publish] = {}
        for number, mail in enumerate(mails):
            try:
                publishes[number] = self._encode(mail)
            except (ValueError, TypeError) as error:
                verdicts[number] = Verdict.failed(error)
        pause = FIRST_PAUSE
        while publishes:
            outcomes = await self._publish(publishes, verdicts)
            for number, outcome in outcomes.items():
                verdict = self._verdict(outcome)
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
        if self._record is not None:
            stored = [mail.origin.id for number, mail in enumerate(mails) if verdicts[number].is_good]
            await self._record.note(stored, {})
        if self._error is not None and CANCELLED in verdicts.values():
            raise self._error
        return [verdicts[number] for number in range(len(mails))]

    def cancel(self) -> None:
        if self._waits and self._gateway.is_stopping:  # what was not published yet stays where it is
            self._stopping.set()
            self._wake()

    async def _publish(self, publishes: dict[int, Publish], verdicts: dict[int, Verdict]) -> dict[int, Outcome | None]:
        """The outcomes of those that could be published; the others have verdicts then."""
        numbers = list(publishes)
        group = Group(len(numbers))
        where = self._where
        for index, number in enumerate(numbers):
            properties, body = publishes[number]
            chosen = await self._choose(body)
            if isinstance(chosen, Connection):
                try:
                    tag = chosen.publish(self._channel, where.exchange, where.queue, properties, body)
                except ValueError as error:  # its headers are too large
                    chosen = Verdict.failed(error)
                else:
                    self._pending[tag] = group, index
                    continue
            verdicts[number] = chosen
            del publishes[number]
            group.take(index, None)
        await group.done
        return {number: group.outcomes[index] for index, number in enumerate(numbers) if number in publishes}

    async def _choose(self, body: bytes) -> Connection | Verdict:
        """The connection to publish this on, or what becomes of it without."""
        if len(body) > self._most:
            return Verdict.rejected(552, f"5.3.4 a message of {len(body)} octets; the queue takes {self._most}")
        if self._waits:
            return await self._ready() or CANCELLED
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._ready() or CANCELLED
        except TimeoutError:
            return Verdict.deferred(451, "4.3.1 the queue takes nothing now; try again later")

    def _verdict(self, outcome: Outcome | None) -> Verdict | None:
        """None: it is to be published again."""
        kind = "in doubt" if outcome is None else outcome.kind
        if kind == "ack":
            return Verdict.accepted()
        if outcome is not None and kind == "returned":
            self._end_with(f"its messages go to no queue ({outcome.code} {outcome.text})")
            return CANCELLED
        if self._waits:
            self._gateway.report.counts.in_doubt += kind == "in doubt"
            return CANCELLED if self._gateway.is_stopping else None
        if kind == "nack":
            return Verdict.deferred(452, "4.3.1 the queue is full; try again later")
        return Verdict.in_doubt("4.4.2 the queue did not confirm it")

    def _encode(self, mail: Mail) -> Publish:
        """Raises ValueError, TypeError for what a plugin put into `json` and there is no room for."""
        known = mail.json
        now = time.time()
        received = mail.origin.received or now
        priority = known.get("priority")
        fields: dict[str, Any] = {
            "delivery_mode": 2,
            "message_id": mail.origin.id,
            "app_id": "mqcore",
            "timestamp": int(now),
            "priority": priority if type(priority) is int and 0 <= priority < 256 else None,
        }
        if self._where.raw:
            headers = {name: value for name, value in known.items() if value is not None}
            properties = Properties(content_type=RAW, headers={**headers, "x-mqcore-attempt": 1}, **fields)
            return Publish(encode_properties(properties), mail.mime)
        whole = {
            "received": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(received)),
            "hostname": self._hostname,
            **known,
            "message-id": mail.origin.id,
        }
        if mail.connection is not None:
            whole["connection"] = {"remote-ip": mail.connection.peer, "secure": mail.connection.tls}
        properties = Properties(content_type="application/json", headers={"x-mqcore-attempt": 1}, **fields)
        return Publish(encode_properties(properties), write_body(mail.mime, whole))

    async def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._starting.cancel()
        await asyncio.wait([self._starting])
        if self._session is not None:
            await self._session.close()
