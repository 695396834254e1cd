"""The connections to the next server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from .smtp_client import Client, NextServer, Unreachable

MAX_CONNECTIONS = 20
IDLE_TIMEOUT = 30.0
"""Seconds that a connection is kept open without a mail."""

log = logging.getLogger(__name__)


class Pool:
    """At most `MAX_CONNECTIONS` to one server, each of which is used for many mails, one after the other.

    When the server cannot be reached, it is tried again after each of `pauses` (in seconds), once for all who wait.
    """

    def __init__(self, server: NextServer, pauses: Sequence[float]) -> None:
        self._server = server
        self._pauses = pauses
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: dict[Client, asyncio.TimerHandle] = {}
        self._trying_again = asyncio.Lock()
        self._goodbyes: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def client(self, *, fresh: bool = False) -> AsyncIterator[Client]:
        """A connection, for one transaction; with `fresh`, a new one. Raises Unreachable."""
        async with self._room:
            client = self._take_idle(fresh) or await self._connect()
            try:
                yield client
            finally:
                self._put_back(client)

    def _take_idle(self, fresh: bool) -> Client | None:
        while self._idle:
            client, timer = self._idle.popitem()
            timer.cancel()
            if client.is_reusable and not fresh:
                return client
            client.close()
            if fresh:
                break  # its place is enough
        return None

    async def _connect(self) -> Client:
        try:
            return await Client.connect(self._server)
        except Unreachable as error:
            if error.final or not self._pauses:
                raise
        async with self._trying_again:
            for pause in self._pauses:
                try:
                    return await Client.connect(self._server)
                except Unreachable as error:
                    if error.final:
                        raise
                    log.warning("cannot reach %s: %s; trying again in %g s", self._server.url, error, pause)
                await asyncio.sleep(pause)
            return await Client.connect(self._server)

    def _put_back(self, client: Client) -> None:
        if client.is_reusable:
            self._idle[client] = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._retire, client)
        else:
            client.close()

    def _retire(self, client: Client) -> None:
        del self._idle[client]
        goodbye = asyncio.create_task(client.quit())
        self._goodbyes.add(goodbye)
        goodbye.add_done_callback(self._goodbyes.discard)

    async def close(self) -> None:
        """Say goodbye on all connections, none of which is in use any more."""
        for client, timer in list(self._idle.items()):
            timer.cancel()
            self._retire(client)
        while self._goodbyes:
            await asyncio.wait(self._goodbyes)
