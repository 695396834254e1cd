"""Where messages of a queue that is read go on to: its other queues. Each is done with when the broker has confirmed it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...amqp.client import ClientOptions, Outcome, encode_properties
from .connection import Address, Connection, Unreachable
from .declare import check_source_queues, make_source_queues
from .message import Outgoing, with_headers
from .publisher import FIRST_PAUSE, LONGEST_PAUSE
from .publishing import Group, Publishing

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .url import AmqpUrl

MAX_BODY = 512 << 20


class Outlet:
    """A connection apart from the one that consumes: one that publishes is not read while the broker is low on memory, and acks
    must be."""

    def __init__(self, where: AmqpUrl, address: Address, options: ClientOptions, gateway: Gateway) -> None:
        self._where = where
        self._gateway = gateway
        self._counts = gateway.report.counts
        self.publishing = Publishing(address, options, self._prepare, self._fail, self._counts, MAX_BODY)

    async def start(self) -> None:
        """Raises Unreachable."""
        await self.publishing.session.start()

    async def close(self) -> None:
        await self.publishing.close()

    async def _prepare(self, connection: Connection) -> None:
        prepare = make_source_queues if self._where.declares else check_source_queues
        await prepare(connection, self._where)

    def _fail(self, error: Unreachable) -> None:
        self._gateway.fail(f"cannot publish to the queues of {self._where}: {error}")

    async def publish(self, queue: str, message: Outgoing, is_wanted: Callable[[], bool]) -> bool:
        """Whether the broker has confirmed it. Else it is not wanted any more, or there is no such queue, which ends the run.
        While it is full, or the broker is away, this waits."""
        properties = encode(message)
        time = asyncio.get_running_loop().time
        pause = FIRST_PAUSE
        refused_since = 0.0
        while is_wanted():
            connection = self.publishing.connection
            if connection is None:
                await self.publishing.change()
                continue
            outcome = await self._publish_once(connection, queue, properties, message.body)
            if outcome.kind == "ack":
                return True
            if outcome.kind == "returned":
                self._gateway.fail(f"cannot publish to queue {queue} of {self._where}: {outcome.code} {outcome.text}")
                return False
            if outcome.kind == "nack":
                refused_since = refused_since or time()
                self.publishing.refused(refused_since)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._counts.in_doubt += 1
        return False

    async def _publish_once(self, connection: Connection, queue: str, properties: bytes, body: bytes) -> Outcome:
        group = Group(1)
        self.publishing.publish(connection, "", queue, properties, body, group.take, 0)
        await group.done
        outcome = group.outcomes[0]
        assert outcome is not None
        return outcome


MAX_PROPERTIES = 100_000
"""Octets: what fits into any frame that a broker allows."""


def encode(message: Outgoing) -> bytes:
    """Without the headers of others, if AMQP has no room for these."""
    properties = message.properties
    try:
        encoded = encode_properties(properties)
        if len(encoded) <= MAX_PROPERTIES:
            return encoded
    except (ValueError, TypeError):
        pass
    own = {name: value for name, value in properties.headers.items() if name.startswith("x-mqcore-")}
    return encode_properties(with_headers(properties, own, own_only=True))
