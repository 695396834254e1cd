"""From SMTP clients, through the plugins, to a sink."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import signal
import socket
import time
from dataclasses import replace

from ... import Dispatcher
from ...smtp.events import Service
from .._writer import Writer
from ..base import Sink
from ..failed import FailedSink
from ..report import Counts, Report
from ._connection import HANDSHAKE_TIMEOUT, SmtpConnection
from ._transaction import Desk
from .host import Hooks
from .sink import make_sender
from .source import SmtpSource

MAX_CONNECTIONS = 20_000
MAX_MESSAGE_BYTES = 256 << 20
"""While messages in memory have so many octets, no further big ones are taken."""
SWEEP = 5.0
"""Seconds from one look for clients that are late to the next."""
PATIENCE = 30.0
"""Seconds that open transactions have when the server stops."""
BACKLOG = 1024
ACCEPT_AGAIN = 1.0
"""Seconds until a client is waited for again when the system does not let another one in."""
SPARE_FILES = 64
"""For the sinks, plugins, and whatever else is not a connection."""


class SmtpServer:
    """Listens until it is stopped, and moves each mail through the plugins to `sink`. It is a connection's `Host`.

    If the sink is a server too, what that says is passed on to the client.

    What plugins reject goes to `failed` where others of the same transaction are accepted; without `failed` a
    transaction has one recipient.
    """

    ends_when = "the transactions that are open are over"

    def __init__(
        self,
        dispatcher: Dispatcher,
        source: SmtpSource,
        sink: Sink,
        failed: FailedSink | None = None,
        *,
        max_in_flight: int = 1000,
    ) -> None:
        self.report = Report(Counts())
        self.loop = asyncio.get_running_loop()
        self.dispatcher = dispatcher
        self.hooks = Hooks.of(dispatcher)
        self.tls = source.tls
        self.implicit_tls = source.implicit_tls
        self.service = self._make_service(source, one_recipient=failed is None)
        self._source = source
        self._writer = Writer(sink, failed, self.report, self.stop)
        self._sender = make_sender(dispatcher, sink, self.report, self.stop, mixed=failed is not None)
        self.desk = Desk(
            dispatcher, self.hooks.message, self._writer, self._sender, self.report.counts, max_in_flight
        )
        self._connections: set[SmtpConnection] = set()
        self._handshakes: set[asyncio.Task[bool]] = set()
        self._max_connections = MAX_CONNECTIONS
        self._entered = 0
        self._kept = 0
        self._stop = asyncio.Event()
        self._empty = asyncio.Event()

    def _make_service(self, source: SmtpSource, *, one_recipient: bool) -> Service:
        service = Service(
            name=socket.gethostname(),
            starttls=source.tls is not None and not source.implicit_tls,
            auth=bool(self.dispatcher.plugins.order("mq_smtp_in_authenticate")),
            auth_without_tls=source.auth_without_tls,
        )
        return replace(service, max_recipients=1) if one_recipient else service

    # What the command calls

    total = None
    """Nobody knows how much will come."""

    @property
    def done(self) -> int:
        return self.report.counts.read

    async def run(self) -> Report:
        """Once. Ends after `stop`, or when the sink failed: see the report."""
        begin = time.perf_counter()
        self._max_connections = min(MAX_CONNECTIONS, raise_file_limit() - SPARE_FILES)
        async with self._sender or contextlib.nullcontext(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run())
            try:
                await self._serve()
            finally:
                for connection in list(self._connections):  # none, unless the loop is being stopped
                    connection.abandon()
            self._writer.close()
        self.report.seconds = time.perf_counter() - begin
        self.report.hooks = self.dispatcher.stats().hooks
        return self.report

    def stop(self, why: signal.Signals | None = None) -> None:
        """Take no more connections, and end when the transactions that are open are over. For a server it is no early end."""
        self._stop.set()

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as listening:
            for listener in self._source.listeners:
                if self.implicit_tls:
                    listener.setblocking(False)
                    listener.listen(BACKLOG)
                    self._listen(listener)
                    listening.callback(self.loop.remove_reader, listener)
                else:
                    server = await self.loop.create_server(lambda: SmtpConnection(self), sock=listener, backlog=BACKLOG)
                    listening.callback(server.close)
            sweeping = asyncio.create_task(self._sweep())
            await self._stop.wait()
        for handshake in self._handshakes:
            handshake.cancel()
        for connection in list(self._connections):
            connection.shut_down()
        await self._wait_until_empty()
        sweeping.cancel()

    # With implicit TLS, where `create_server` would not tell how many clients have not shaken hands yet

    def _listen(self, listener: socket.socket) -> None:
        if not self._stop.is_set():
            self.loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self.loop.remove_reader(listener)
            self.loop.call_later(ACCEPT_AGAIN, self._listen, listener)
            return
        if len(self._connections) + len(self._handshakes) < self._max_connections:
            handshake = self.loop.create_task(self._shake_hands(client))
            self._handshakes.add(handshake)
            handshake.add_done_callback(functools.partial(self._after_handshake, client))
        else:
            client.close()

    async def _shake_hands(self, client: socket.socket) -> bool:
        """Whether TLS began; if not, nobody can be told of it."""
        with contextlib.suppress(OSError):
            await self.loop.connect_accepted_socket(
                lambda: SmtpConnection(self), client, ssl=self.tls, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
            return True
        return False

    def _after_handshake(self, client: socket.socket, handshake: asyncio.Task[bool]) -> None:
        self._handshakes.discard(handshake)
        if handshake.cancelled() or not handshake.result():
            client.close()

    async def _wait_until_empty(self) -> None:
        give_up = self.loop.time() + PATIENCE
        while self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(give_up - self.loop.time(), 1.0)):
                    await self._empty.wait()
            if self.loop.time() >= give_up:
                if self._sender is not None:
                    self._sender.cut()
                for connection in list(self._connections):
                    connection.end(421, "4.3.2 this server is shutting down")

    async def _sweep(self) -> None:
        """One timer for all connections."""
        while True:
            await asyncio.sleep(SWEEP)
            now = self.loop.time()
            for connection in [one for one in self._connections if one.is_late(now)]:
                connection.end(421, "4.4.2 you are too slow")

    # What a connection calls

    def enter(self, connection: SmtpConnection) -> int | None:
        if self._stop.is_set() or len(self._connections) >= self._max_connections:
            return None
        self._connections.add(connection)
        self._entered += 1
        return self._entered

    def leave(self, connection: SmtpConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def keep(self, size: int) -> bool:
        self._kept += size
        return self._kept <= MAX_MESSAGE_BYTES


def raise_file_limit() -> int:
    """Let the process open as many files as it may, and return how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 2 * SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted
