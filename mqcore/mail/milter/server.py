"""The server that a milter source runs: mail servers connect to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import Hook
from ...milter.events import Wanted
from .._gateway import Gateway
from ..smtp.server import connections_for
from ._session import Session
from .sink import MilterSink

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
        self.gateway = gateway
        self.max_message = source.max_message_size
        self.is_stopping = False
        self.sessions: dict[Session, None] = {}
        self.entered = 0
        self._source = source
        self._listeners = source.listeners
        self._sink_takes_it = not isinstance(gateway.sink, MilterSink)
        self._most = connections_for(source.max_connections)
        self._numbers = itertools.count(1)
        self._run = os.urandom(8).hex()
        self._change = asyncio.Event()
        self._known: object = None
        """The plugins that `_wanted` was found of."""
        self._wanted = Wanted()
        self.is_local = source.is_local
        hook = gateway.dispatcher.hook
        self.connect: Hook = hook("mq_smtp_in_connect")
        self.secure: Hook = hook("mq_smtp_in_secure")
        self.mailfrom: Hook = hook("mq_smtp_in_mailfrom")
        self.rcptto: Hook = hook("mq_smtp_in_rcptto")
        self.data: Hook = hook("mq_smtp_in_data")
        self.close: Hook = hook("mq_smtp_in_close")
        for name in NEVER_CALLED:
            if found := gateway.dispatcher.plugins.order(name):
                log.warning("%s of %s is never called: the mail server does that by itself", name, ", ".join(found))

    def wanted(self) -> Wanted:
        """What a mail server that connects now is to ask about: what no plugin wants costs both sides nothing."""
        plugins = self.gateway.dispatcher.plugins
        if self._known is not plugins.snapshot:
            self._known = plugins.snapshot
            self._wanted = self._find_wanted(plugins.order)
        return self._wanted

    def _find_wanted(self, order: Callable[[str], list[str]]) -> Wanted:
        return Wanted(
            connect=bool(order("mq_smtp_in_connect")),
            secure=bool(order("mq_smtp_in_secure")),
            sender=bool(order("mq_smtp_in_mailfrom")),
            recipient=bool(order("mq_smtp_in_rcptto")),
            content=self._sink_takes_it or bool(order("mq_smtp_in_data") or order("mq_smtp_in_message")),
        )

    def next_number(self) -> tuple[int, str]:
        """Of a client or a mail, and an id made of it, which no other of any run has."""
        number = next(self._numbers)
        return number, f"{self._run}{number:016x}"

    def figures(self) -> dict[str, Any]:
        """Since it began, as plain data."""
        return {"connections_open": len(self.sessions), "connections": self.entered}

    # What the source calls

    async def run(self) -> None:
        """Ends after `stop`, when no mail server is left."""
        sweeping = self.loop.create_task(self._sweep())
        listening = [await self._listen(one) for one in self._listeners]
        try:
            await self._wait_until(lambda: self.is_stopping)
            for one in listening:
                one.close()
            await self._wait_until(lambda: not self.sessions)
        finally:
            sweeping.cancel()
            for one in listening:
                one.close()
            for session in list(self.sessions):  # none, unless the loop is being stopped
                session.abandon()

    async def _wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._change.clear()
            await self._change.wait()

    async def _listen(self, listener: socket.socket) -> asyncio.AbstractServer:
        if not self.is_local:  # what is accepted there has it, too: servers that died do not say so
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listen = self.loop.create_unix_server if self.is_local else self.loop.create_server
        return await listen(partial(Session, self), sock=listener, backlog=BACKLOG)

    def stop(self) -> None:
        """Take no more connections, and let go of those in which nothing is open."""
        self.is_stopping = True
        for session in list(self.sessions):
            if session.is_idle:
                session.close()
        self._change.set()

    def cut(self) -> None:
        """Break off what is still open."""
        for session in list(self.sessions):
            session.abandon()

    # What a session calls

    def enter(self, session: Session) -> None:
        self.sessions[session] = None
        self.entered += 1
        if len(self.sessions) > self._most:
            log.warning("a connection of a mail server is closed, as %d are there", self._most)
            session.close()
        elif self.is_stopping:
            session.close()

    def leave(self, session: Session) -> None:
        self.sessions.pop(session, None)
        if self.is_stopping:
            self._change.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            late = self.loop.time() - IDLE
            for session in [one for one in self.sessions if one.since < late and not one.protocol.due]:
                log.warning("a mail server said nothing for two hours: its connection is closed")
                session.abandon()
