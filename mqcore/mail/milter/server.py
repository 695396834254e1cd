"""The server that a milter source runs: mail servers connect to it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._gateway import Gateway
from ..smtp.server import connections_for
from ._host import MilterHost
from ._session import Session

if TYPE_CHECKING:
    from .source import MilterSource

BACKLOG = 1024
SWEEP = 60.0
IDLE = 7210.0
"""Seconds that a mail server may say nothing, as with libmilter: its client may take an hour for a message."""

NEVER_CALLED = ("mq_smtp_in_authenticate", "mq_smtp_out_data", "mq_smtp_out_sent")

log = logging.getLogger(__name__)


class MilterServer:
    """Listens for a source until it is stopped, and submits what mail servers ask about to the gateway."""

    def __init__(self, source: MilterSource, gateway: Gateway) -> None:
        self.loop = asyncio.get_running_loop()
        self._source = source
        self._listeners = source.listeners
        self._change = asyncio.Event()
        self.is_local = source.is_local
        self.host = MilterHost(
            self.loop,
            gateway,
            self._change.set,
            max_message=source.max_message_size,
            most=connections_for(source.max_connections),
        )
        for name in NEVER_CALLED:
            if found := gateway.dispatcher.plugins.order(name):
                log.warning("%s of %s is never called: the mail server does that by itself", name, ", ".join(found))

    def figures(self) -> dict[str, Any]:
        """Since it began, as plain data."""
        return {"connections_open": len(self.host.sessions), "connections": self.host.entered}

    # What the source calls

    async def run(self) -> None:
        """Ends after `stop`, when no mail server is left."""
        sweeping = self.loop.create_task(self._sweep())
        listening = [await self._listen(one) for one in self._listeners]
        try:
            await self._wait_until(lambda: self.host.is_stopping)
            for one in listening:
                one.close()
            await self._wait_until(lambda: not self.host.sessions)
        finally:
            sweeping.cancel()
            for one in listening:
                one.close()
            for session in list(self.host.sessions):  # none, unless the loop is being stopped
                session.abandon()

    async def _wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._change.clear()
            await self._change.wait()

    async def _listen(self, listener: socket.socket) -> asyncio.AbstractServer:
        if not self.is_local:  # what is accepted there has it, too: servers that died do not say so
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listen = self.loop.create_unix_server if self.is_local else self.loop.create_server
        return await listen(partial(Session, self.host), sock=listener, backlog=BACKLOG)

    def stop(self) -> None:
        """Take no more connections, and let go of those in which nothing is open."""
        self.host.stop()
        self._change.set()

    def cut(self) -> None:
        """Break off what is still open."""
        for session in list(self.host.sessions):
            session.abandon()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            late = self.loop.time() - IDLE
            for session in [one for one in self.host.sessions if one.since < late and not one.protocol.due]:
                log.warning("a mail server said nothing for two hours: its connection is closed")
                session.abandon()
