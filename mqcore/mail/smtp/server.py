"""The server that an SMTP or LMTP source runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import socket
from collections import Counter
from typing import Any

from ...smtp.events import Service
from ...smtp.proxy import ProxyError
from .._gateway import Gateway
from ..errors import SourceError
from ..files import raise_file_limit
from ..message import Rejection
from ._connection import HANDSHAKE_TIMEOUT, Names, SmtpConnection
from ._counters import SmtpCounters
from ._trace import Tracer
from .host import Hooks
from .hostname import is_full
from .logins import FailedLogins
from .networks import network_of
from .proxied import read_header
from .source import SmtpSource

MAX_CONNECTIONS = 20_000
MAX_MESSAGE_BYTES = 256 << 20
"""While messages in memory have so many octets, no further big ones are taken."""
SWEEP = 5.0
"""Seconds from one look for clients that are late to the next."""
BACKLOG = 1024
TOO_SLOW = Rejection(421, "4.4.2 you are too slow")
FEW_CONNECTIONS = 200
"""With fewer than these there is a warning, whatever is asked for."""
ACCEPT_AGAIN = 1.0
"""Seconds until a client is waited for again when the system does not let another one in."""
SPARE_FILES = 64
"""For the sinks, plugins, and whatever else is not a connection; where there are few, half of them."""

log = logging.getLogger(__name__)


class SmtpServer:
    """Listens for a source until it is stopped, and submits what clients send to the gateway. It is a connection's `Host`."""

    def __init__(self, source: SmtpSource, gateway: Gateway) -> None:
        self.loop = asyncio.get_running_loop()
        self.gateway = gateway
        self.hooks = Hooks.of(gateway.dispatcher)
        self.names = Names()
        self.counters = SmtpCounters()
        self.failed_logins = FailedLogins()
        self.tracer = Tracer(source.hostname, source.url) if source.traces else None
        self.implicit_tls = source.implicit_tls
        self._source = source
        self.configure()
        self._proxies = source.proxy_from
        self._trusted = source.xclient_from, source.xforward_from
        self.trusts_some = any(self._trusted)
        if source.require_login and not self._service.auth:
            raise SourceError("--require-login: no plugin has the hook mq_smtp_in_authenticate, so nobody could log in")
        self._listeners = source.listeners
        self._connections: dict[SmtpConnection, str] = {}  # with the network that each is from
        self._handshakes: dict[asyncio.Task[bool], str] = {}
        self._from_network: Counter[str] = Counter()
        self._entered = 0
        self._reserved = 0
        self._stop = asyncio.Event()
        self._empty = asyncio.Event()
        if not is_full(source.hostname):
            log.warning("%s is no full name of a host, as mx.example.org; give one with --hostname", source.hostname)

    def configure(self) -> None:
        """Take the options of the source as they are now. They are for those who connect from now on."""
        source = self._source
        self.tls = source.tls
        self.timeout = source.timeout
        self._max_from_network = source.max_connections_per_ip
        self._limit_connections(source.max_connections)
        self._make_services()

    def _limit_connections(self, wanted: int | None) -> None:
        most = wanted or MAX_CONNECTIONS
        files = raise_file_limit(most + 2 * SPARE_FILES)
        self._max_connections = min(most, files - min(SPARE_FILES, files // 2))
        if self._max_connections < (wanted or FEW_CONNECTIONS):
            log.warning("%d clients can be there at once, as this process may open %d files; raise the limit (ulimit -n)",
                        self._max_connections, files)

    def _make_services(self) -> None:
        self._plugins = self.gateway.dispatcher.plugins.snapshot
        self._service = self._make_service(self._source)
        self._service_with_dsn = dataclasses.replace(self._service, dsn=True)

    def _make_service(self, source: SmtpSource) -> Service:
        return Service(
            name=source.hostname,
            lmtp=source.lmtp,
            starttls=source.tls is not None and not source.implicit_tls,
            auth=bool(self.gateway.dispatcher.plugins.order("mq_smtp_in_authenticate")),
            auth_without_tls=source.auth_without_tls,
            require_tls=source.require_tls,
            require_login=source.require_login,
            lenient=source.lenient,
            max_message=source.max_message_size,
            max_recipients=source.max_recipients,
            trace=self.tracer.id.encode() if self.tracer is not None else b"",
            max_loops=source.max_loops,
        )

    @property
    def service(self) -> Service:
        """What a connection that begins now is offered."""
        if self._plugins is not self.gateway.dispatcher.plugins.snapshot:  # logins are offered where a plugin takes them
            self._make_services()
        return self._service_with_dsn if self.gateway.sink.takes_dsn else self._service

    def figures(self) -> dict[str, Any]:
        """Since it began, as plain data."""
        counters = self.counters
        return {
            "connections_open": len(self._connections) + len(self._handshakes),
            "connections": self._entered,
            "refused": dict(counters.refused),
            "accepted": counters.accepted,
            "logins": dict(counters.logins),
            "handshakes": [[version, result, count] for (version, result), count in counters.handshakes.items()],
            "transactions": counters.transactions,
        }

    # What the source calls

    async def run(self) -> None:
        """Ends after `stop`, when no client is left."""
        try:
            await self._serve()
        finally:
            for connection in list(self._connections):  # none, unless the loop is being stopped
                connection.abandon()

    def stop(self) -> None:
        """Take no more connections, and end when the transactions that are open are over."""
        self._stop.set()

    def cut(self) -> None:
        """Say goodbye to those who are still there."""
        for connection in list(self._connections):
            connection.end(421, "4.3.2 this server is shutting down")

    async def _serve(self) -> None:
        sweeping = asyncio.create_task(self._sweep())
        try:
            await self._listen_until_stopped()
            for connection in list(self._connections):
                connection.shut_down()
            while self._connections:
                self._empty.clear()
                await self._empty.wait()
        finally:
            sweeping.cancel()

    async def _listen_until_stopped(self) -> None:
        async with contextlib.AsyncExitStack() as listening:
            for listener in self._listeners:
                if self.implicit_tls or self._proxies:
                    listener.setblocking(False)
                    listener.listen(BACKLOG)
                    self._listen(listener)
                    listening.callback(self.loop.remove_reader, listener)
                else:
                    listen = self.loop.create_unix_server if listener.family == socket.AF_UNIX else self.loop.create_server
                    server = await listen(lambda: SmtpConnection(self), sock=listener, backlog=BACKLOG)
                    listening.callback(server.close)
            try:
                await self._stop.wait()
            finally:
                for handshake in self._handshakes:
                    handshake.cancel()

    # Where something comes before SMTP: with implicit TLS `create_server` would not tell how many clients have not shaken
    # hands yet, and with the PROXY protocol it would read too much.

    def _listen(self, listener: socket.socket) -> None:
        if not self._stop.is_set():
            self.loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self.loop.remove_reader(listener)
            self.loop.call_later(ACCEPT_AGAIN, self._listen, listener)
            return
        peer = address[0] if address else ""
        is_proxy = peer in self._proxies
        network = "" if is_proxy or not self.implicit_tls else self._network_of(peer)
        is_said_later = not (is_proxy or self.implicit_tls)  # that there are too many
        if is_said_later or self._find_excess(network, len(self._handshakes), peer) is None:
            begin = self._hear_proxy(client, peer) if is_proxy else self._shake_hands(client, peer)
            handshake = self.loop.create_task(begin)
            self._handshakes[handshake] = network
            if network:
                self._from_network[network] += 1
            handshake.add_done_callback(functools.partial(self._after_handshake, client))
        else:
            client.close()

    async def _hear_proxy(self, client: socket.socket, peer: str) -> bool:
        """Whether a balancer said of whom the connection is, and that is not too many."""
        client.setblocking(False)
        try:
            said = await read_header(self.loop, client)
        except (ProxyError, OSError) as error:
            self.counters.refused["proxy"] += 1
            self.gateway.refusals.note("proxy", 421, f"4.7.0 no header of the PROXY protocol: {error}", client=peer)
            return False
        if said is None:
            return False
        peer = said or peer
        if self.implicit_tls:
            network = self._network_of(peer)
            handshake = asyncio.current_task()
            if self._find_excess(network, len(self._handshakes) - 1, peer) is not None or handshake is None:
                return False
            self._handshakes[handshake] = network
            if network:
                self._from_network[network] += 1
        return await self._shake_hands(client, peer)

    async def _shake_hands(self, client: socket.socket, peer: str) -> bool:
        """Whether TLS began, if it is to begin at once; if not, nobody can be told of it."""
        tls, timeout = (self.tls, HANDSHAKE_TIMEOUT) if self.implicit_tls else (None, None)
        with contextlib.suppress(OSError, MemoryError):
            await self.loop.connect_accepted_socket(
                lambda: SmtpConnection(self, peer), client, ssl=tls, ssl_handshake_timeout=timeout
            )
            return True
        if tls is not None:
            self.counters.handshakes["none", "failed"] += 1
        return False

    def _after_handshake(self, client: socket.socket, handshake: asyncio.Task[bool]) -> None:
        self._forget_network(self._handshakes.pop(handshake))
        if handshake.cancelled() or not handshake.result():
            client.close()

    async def _sweep(self) -> None:
        """One timer for all connections."""
        while True:
            await asyncio.sleep(SWEEP)
            now = self.loop.time()
            for connection in [one for one in self._connections if one.is_late(now)]:
                self.gateway.refusals.note("timeout", *TOO_SLOW, client=connection.info.peer, helo=connection.info.helo)
                connection.end(*TOO_SLOW)

    # What a connection calls

    def enter(self, connection: SmtpConnection, peer: str) -> int | Rejection:
        network = self._network_of(peer)
        if self._stop.is_set():
            self.counters.refused["shutting_down"] += 1
            return Rejection(421, "4.3.2 this server is shutting down")
        # With implicit TLS this one is still among the handshakes, and was counted there.
        if not self.implicit_tls and (excess := self._find_excess(network, 0, peer)) is not None:
            return excess
        return self._admit(connection, network)

    def reenter(self, connection: SmtpConnection, peer: str) -> int | Rejection:
        network = self._network_of(peer)
        self._forget_network(self._connections[connection])
        self._connections[connection] = ""
        if (excess := self._find_excess(network, -1, peer)) is not None:
            return excess
        return self._admit(connection, network)

    def _admit(self, connection: SmtpConnection, network: str) -> int:
        self._connections[connection] = network
        if network:
            self._from_network[network] += 1
        self._entered += 1
        return self._entered

    def trusts(self, peer: str) -> tuple[bool, bool]:
        xclient, xforward = self._trusted
        return peer in xclient, peer in xforward

    def leave(self, connection: SmtpConnection) -> None:
        self._forget_network(self._connections.pop(connection, ""))
        if not self._connections:
            self._empty.set()

    def reserve(self, size: int) -> bool:
        self._reserved += size
        return self._reserved <= MAX_MESSAGE_BYTES

    # Too many

    def _network_of(self, peer: str) -> str:
        """That of a client, where clients are counted by it."""
        return "" if self._max_from_network is None or not peer else network_of(peer)

    def _find_excess(self, network: str, handshakes: int, peer: str) -> Rejection | None:
        """What a client is told who comes now, if there are too many; that is noted as well."""
        if len(self._connections) + handshakes >= self._max_connections:
            excess = Rejection(421, "4.3.2 too many connections; try again later")
            self.counters.refused["too_many"] += 1
        elif network and self._max_from_network is not None and self._from_network[network] >= self._max_from_network:
            excess = Rejection(421, "4.7.0 too many connections from your network; try again later")
            self.counters.refused["too_many_from_network"] += 1
        else:
            return None
        self.gateway.refusals.note("connect", *excess, client=peer)
        return excess

    def _forget_network(self, network: str) -> None:
        if network:
            self._from_network[network] -= 1
            if not self._from_network[network]:
                del self._from_network[network]
