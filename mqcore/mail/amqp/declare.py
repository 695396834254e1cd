"""Queues that are made where they are missing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ...amqp.errors import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from .connection import BrokerError, Connection
from .url import FAILED

NEWBORN = 2.0
"""Seconds until a quorum queue that was just made survives a crash of its broker, with what was confirmed."""

log = logging.getLogger(__name__)


def arguments_of(queue: str) -> dict[str, Any]:
    """Nothing is lost on the way to the queue of what failed: the usual strategy, at-most-once, does lose it in a crash."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{queue}{FAILED}",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


async def make_queues(connection: Connection, queue: str) -> None:
    """A queue, and before it that of what failed; both are ready when this returns. Raises BrokerError."""
    made = await _make(connection, f"{queue}{FAILED}", {"x-queue-type": "quorum", "x-overflow": "reject-publish"})
    made |= await _make(connection, queue, arguments_of(queue))
    if made:
        await asyncio.sleep(NEWBORN)


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
        log.warning("queue %s is used as it is: %s", queue, error)
    return is_new


async def _ask(connection: Connection, queue: str, **options: Any) -> None:
    """On a channel of its own, which the broker closes if it does not like the question."""
    channel = await connection.open_channel()
    await connection.ask(channel, connection.protocol.declare_queue, queue, **options)
    connection.protocol.close_channel(channel)
    connection.flush_soon()
