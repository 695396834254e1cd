"""The server that an SMTP or LMTP source runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from functools import partial
from typing import Any

from ...smtp.events import Service
from ...smtp.proxy import ProxyError
from ...smtp.syntax import SHUTTING_DOWN
from .._gateway import Gateway
from ..files import raise_file_limit
from ..verdicts import Rejection
from ._connection import HANDSHAKE_TIMEOUT, SmtpConnection
from ._host import Host
from ._trace import Tracer
from .hostname import is_full
from .proxied import read_header
from .source import SmtpSource, check_logins

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

REFUSED = ("too_many", "too_many_from_network", "plugin", "proxy", "shutting_down")
"""Why clients are not let in. What is counted is told from the beginning, so that the first is seen as one more."""
LOGINS = ("ok", "refused", "failed")

log = logging.getLogger(__name__)


class SmtpServer:
    """Listens for a source until it is stopped, and submits what clients send to the gateway."""

    def __init__(self, source: SmtpSource, gateway: Gateway) -> None:
        self.loop = asyncio.get_running_loop()
        self.gateway = gateway
        self._tracer = Tracer(source.hostname, source.url) if source.traces else None
        self._source = source
        check_logins(source.require_login, gateway.dispatcher.plugins)
        self.host = Host(
            self.loop,
            gateway,
            self._make_service,
            self._tracer,
            implicit_tls=source.implicit_tls,
            xclient_from=source.xclient_from,
            xforward_from=source.xforward_from,
            max_reserved=MAX_MESSAGE_BYTES // gateway.processes,
        )
        self.configure()
        self._implicit_tls = source.implicit_tls
        self._proxies = source.proxy_from
        self._listeners = source.listeners
        self._handshakes: dict[asyncio.Task[bool], str] = {}
        self._stop = asyncio.Event()
        if not is_full(source.hostname):
            log.warning("%s is no full name of a host, as mx.example.org; give one with --hostname", source.hostname)

    def configure(self) -> None:
        """Take the options of the source as they are now. They are for those who connect from now on."""
        source, processes = self._source, self.gateway.processes
        per_ip = source.max_connections_per_ip
        self.host.configure(
            tls=source.tls,
            timeout=source.timeout,
            max_connections=connections_for(source.max_connections, processes),
            max_from_network=None if per_ip is None else part_of(per_ip, processes),
        )

    def _make_service(self) -> Service:
        source, tracer = self._source, self._tracer
        return Service(
            name=source.hostname,
            lmtp=source.lmtp,
            starttls=source.tls is not None and not source.implicit_tls,
            auth=bool(self.gateway.dispatcher.plugins.order("mq_smtp_in_authenticate")),
            auth_without_tls=source.auth_without_tls,
            require_tls=source.require_tls,
            require_login=source.require_login,
            lenient=source.lenient,
            max_message=min(source.max_message_size, self.gateway.sink.max_mail or source.max_message_size),
            max_recipients=source.max_recipients,
            trace=tracer.id.encode() if tracer is not None else b"",
            max_loops=source.max_loops,
        )

    def figures(self) -> dict[str, Any]:
        """Since it began, as plain data."""
        host, counters = self.host, self.host.counters
        return {
            "connections_open": len(host.connections) + len(self._handshakes),
            "connections": host.entered,
            "refused": dict.fromkeys(REFUSED, 0) | counters.refused,
            "accepted": counters.accepted,
            "logins": dict.fromkeys(LOGINS, 0) | counters.logins,
            "handshakes": [[version, result, count] for (version, result), count in counters.handshakes.items()],
            "transactions": counters.transactions,
        }

    # What the source calls

    async def run(self) -> None:
        """Ends after `stop`, when no client is left."""
        try:
            await self._serve()
        finally:
            for connection in list(self.host.connections):  # none, unless the loop is being stopped
                connection.abandon()

    def stop(self) -> None:
        """Take no more connections, and end when the transactions that are open are over."""
        self.host.is_stopping = True
        self._stop.set()

    def hold_off(self, is_held_off: bool) -> None:
        """Whether new transactions are refused for now, as the sink takes nothing."""
        self.host.is_held_off = is_held_off

    def cut(self) -> None:
        """Say goodbye to those who are still there."""
        for connection in list(self.host.connections):
            connection.end(421, SHUTTING_DOWN)

    async def _serve(self) -> None:
        sweeping = asyncio.create_task(self._sweep())
        try:
            await self._listen_until_stopped()
            for connection in list(self.host.connections):
                connection.shut_down()
            await self.host.wait_until_empty()
        finally:
            sweeping.cancel()

    async def _listen_until_stopped(self) -> None:
        async with contextlib.AsyncExitStack() as listening:
            for listener in self._listeners:
                if self._implicit_tls or self._proxies:
                    listener.setblocking(False)
                    listener.listen(BACKLOG)
                    self._listen(listener)
                    listening.callback(self.loop.remove_reader, listener)
                else:
                    listen = self.loop.create_unix_server if listener.family == socket.AF_UNIX else self.loop.create_server
                    server = await listen(partial(SmtpConnection, self.host), sock=listener, backlog=BACKLOG)
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
        network = "" if is_proxy or not self._implicit_tls else self.host.network_of(peer)
        is_said_later = not (is_proxy or self._implicit_tls)  # that there are too many
        if is_said_later or self.host.find_excess(network, len(self._handshakes), peer) is None:
            begin = self._hear_proxy(client, peer) if is_proxy else self._shake_hands(client, peer)
            handshake = self.loop.create_task(begin)
            self._handshakes[handshake] = network
            self.host.join(network)
            handshake.add_done_callback(partial(self._after_handshake, client))
        else:
            client.close()

    async def _hear_proxy(self, client: socket.socket, peer: str) -> bool:
        """Whether a balancer said of whom the connection is, and that is not too many."""
        client.setblocking(False)
        try:
            said = await read_header(self.loop, client)
        except (ProxyError, OSError) as error:
            self.host.counters.refused["proxy"] += 1
            self.gateway.refusals.note("proxy", 421, f"4.7.0 no header of the PROXY protocol: {error}", client=peer)
            return False
        if said is None:
            return False
        peer = said or peer
        if self._implicit_tls:
            network = self.host.network_of(peer)
            handshake = asyncio.current_task()
            if self.host.find_excess(network, len(self._handshakes) - 1, peer) is not None or handshake is None:
                return False
            self._handshakes[handshake] = network
            self.host.join(network)
        return await self._shake_hands(client, peer)

    async def _shake_hands(self, client: socket.socket, peer: str) -> bool:
        """Whether TLS began, if it is to begin at once; if not, nobody can be told of it."""
        tls, timeout = (self._source.tls, HANDSHAKE_TIMEOUT) if self._implicit_tls else (None, None)
        with contextlib.suppress(OSError, MemoryError):
            await self.loop.connect_accepted_socket(
                partial(SmtpConnection, self.host, peer), client, ssl=tls, ssl_handshake_timeout=timeout
            )
            return True
        if tls is not None:
            self.host.counters.handshakes["none", "failed"] += 1
        return False

    def _after_handshake(self, client: socket.socket, handshake: asyncio.Task[bool]) -> None:
        self.host.part(self._handshakes.pop(handshake))
        if handshake.cancelled() or not handshake.result():
            client.close()

    async def _sweep(self) -> None:
        """One timer for all connections."""
        while True:
            await asyncio.sleep(SWEEP)
            now = self.loop.time()
            for connection in [one for one in self.host.connections if one.is_late(now)]:
                self.gateway.refusals.note("timeout", *TOO_SLOW, client=connection.info.peer, helo=connection.info.helo)
                connection.end(*TOO_SLOW)


def part_of(limit: int, processes: int) -> int:
    """Of a limit of the run, what each of its processes may have."""
    return -(-limit // processes)


def connections_for(wanted: int | None, processes: int = 1) -> int:
    """How many clients there can be at once, if so many are wanted of all processes of the run."""
    most = part_of(wanted or MAX_CONNECTIONS, processes)
    files = raise_file_limit(most + 2 * SPARE_FILES)
    possible = min(most, files - min(SPARE_FILES, files // 2))
    if possible < (most if wanted else min(most, FEW_CONNECTIONS)):
        log.warning("%d clients can be there at once, as this process may open %d files; raise the limit (ulimit -n)",
                    possible, files)
    return possible
