"""Queues that are made where they are missing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ...amqp.client import QueueDeclared
from ...amqp.errors import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from .connection import BrokerError, Connection
from .url import FAILED, AmqpUrl

NEWBORN = 2.0
"""Seconds until a quorum queue that was just made survives a crash of its broker, with what was confirmed."""

CLASSIC = "; a classic queue forgets acks when its broker dies, so that much of it comes again"

log = logging.getLogger(__name__)


PLAIN = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
"""Of a queue that nothing leaves but by being consumed."""


def arguments_of(queue: str, failed: str) -> dict[str, Any]:
    """Nothing is lost on the way to the queue of what failed: the usual strategy, at-most-once, does lose it in a crash."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": failed,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


async def make_queues(connection: Connection, queue: str) -> None:
    """A queue, and before it that of what failed; both are ready when this returns. Raises BrokerError."""
    made = await _make(connection, f"{queue}{FAILED}", PLAIN)
    made |= await _make(connection, queue, arguments_of(queue, f"{queue}{FAILED}"))
    if made:
        await asyncio.sleep(NEWBORN)


async def make_source_queues(connection: Connection, where: AmqpUrl) -> None:
    """The same for a queue that is read, with those that what comes out of it goes to."""
    made = await _make(connection, where.failed, PLAIN)
    if where.results:
        made |= await _make(connection, where.results, PLAIN)
    made |= await _make(connection, where.queue, arguments_of(where.queue, where.failed))
    for seconds in where.ladder:
        made |= await _make(connection, where.rung(seconds), rung_arguments(where.queue, seconds))
    if made:
        await asyncio.sleep(NEWBORN)


def rung_arguments(queue: str, seconds: int) -> dict[str, Any]:
    """What has been in it for so long goes to the queue. Not by a time of each message's own: one that has less would wait
    behind those that have more."""
    return {
        **PLAIN,
        "x-message-ttl": seconds * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
    }


async def check_source_queues(connection: Connection, where: AmqpUrl) -> None:
    """Raises BrokerError for the first that is not there."""
    for queue in (where.failed, where.results, where.queue, *map(where.rung, where.ladder)):
        if queue:
            await check_queue(connection, queue)


async def check_queue(connection: Connection, queue: str) -> None:
    """Raises BrokerError if it is not there."""
    await _ask(connection, queue, passive=True)


async def _make(connection: Connection, queue: str, arguments: dict[str, Any]) -> bool:
    """Whether it was not there before."""
    is_new = False
    try:
        await check_queue(connection, queue)
    except BrokerError as error:
        if error.code != NOT_FOUND:
            raise
        is_new = True
    try:
        await _ask(connection, queue, arguments=arguments)
    except BrokerError as error:
        if is_new or error.code not in (PRECONDITION_FAILED, ACCESS_REFUSED):  # who may publish need not be who makes queues
            raise
        log.warning("queue %s is used as it is: %s%s", queue, error, CLASSIC if "'classic'" in str(error) else "")
    return is_new


async def count_messages(connection: Connection, queue: str) -> int:
    """How many wait in it. Raises BrokerError."""
    return (await _ask(connection, queue, passive=True)).messages


async def _ask(connection: Connection, queue: str, **options: Any) -> QueueDeclared:
    """On a channel of its own, which the broker closes if it does not like the question."""
    channel = await connection.open_channel()
    answer: QueueDeclared = await connection.ask(channel, connection.protocol.declare_queue, queue, **options)
    connection.protocol.close_channel(channel)
    connection.flush_soon()
    return answer
