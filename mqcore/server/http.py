"""A small HTTP server on the loop, which shows figures and changes nothing.

It shares the loop with the mail, so whatever its clients do, it takes little: a few connections, one request of each in a turn,
text that is made once for all who ask at the same time, and nothing is kept for those who do not read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple, Self, cast

from ..mail.smtp.hostname import own_hostname
from ..mail.unix_socket import UnixSocket
from .exposition import OPENMETRICS, TEXT, Exposition, Labels, choose, families
from .figures import Figures, for_json
from .history import History
from .http_request import MAX_HEAD, BadRequest, Request, RequestParser
from .page import PAGE, POLICY
from .server import Server

MAX_CONNECTIONS = 64
"""With one more, the one that is idle for longest makes room."""
MAX_WATCHERS = 16
"""Of these, pages that are shown the figures as they change."""
BACKLOG = 16
TIMEOUT = 10.0
"""Seconds that a client has for a request, and to read the answer."""
IDLE_TIMEOUT = 90.0
"""Seconds from one request to the next: Prometheus asks once a minute, or more often."""
SWEEP = 1.0
FRESH = 0.1
"""Seconds for which a text is good for whoever asks."""
WRITE_BUFFER = 1 << 16

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
SAFE = (
    "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n"
    "Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n"
)

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    status: int
    kind: str
    body: bytes
    headers: str = ""


def _plain(status: int, text: str, headers: str = "") -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)


class HttpServer:
    """Shows the figures of a server at `address`, as `address.parse_address` returns it, from `start` to `close`."""

    def __init__(self, server: Server, address: tuple[str, int] | str) -> None:
        """Raises OSError, with a text for people, when nothing can listen there."""
        self._server = server
        self._figures = Figures(server)
        self._labels = Labels()
        self._texts = {kind: Exposition(kind) for kind in (TEXT, OPENMETRICS)}
        self._fresh: dict[str, tuple[float, bytes]] = {}
        self._connections: dict[HttpConnection, None] = {}
        """Who has been idle for longest comes first."""
        self._watchers: set[HttpConnection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._history = History(server, self._tell)
        self._loop = asyncio.get_running_loop()
        self._listening: asyncio.AbstractServer | None = None
        self._unix: UnixSocket | None = None
        if isinstance(address, str):
            self._unix = UnixSocket(address)
            self._socket = self._unix.listener
            self._names: frozenset[str] | None = None  # no browser reaches it by a name
            self.url = f"unix:{address}"
        else:
            self._socket = _listen(*address)
            host, port = self._socket.getsockname()[:2]
            names = ("localhost", address[0], host, socket.gethostname(), own_hostname())
            self._names = frozenset(map(str.lower, names))
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    async def __aenter__(self) -> Self:
        listen = self._loop.create_unix_server if self._unix is not None else self._loop.create_server
        self._listening = await listen(lambda: HttpConnection(self), sock=self._socket, backlog=BACKLOG)
        self._history.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and listen no more."""
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.abort()
        self._history.stop()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._socket.close()
        if self._unix is not None:
            self._unix.close()

    # Connections

    def enter(self, connection: HttpConnection) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).abort()
        self._connections[connection] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP, self._sweep)

    def touch(self, connection: HttpConnection) -> None:
        """It has just said something whole."""
        if self._connections.pop(connection, 0) is None:
            self._connections[connection] = None

    def leave(self, connection: HttpConnection) -> None:
        self._connections.pop(connection, None)
        self._watchers.discard(connection)

    def _sweep(self) -> None:
        """Look for clients that are late, again and again, as long as anybody is there."""
        now = self._loop.time()
        for connection in [one for one in self._connections if one.is_late(now)]:
            connection.abort()
        self._sweeping = self._loop.call_later(SWEEP, self._sweep) if self._connections else None

    # What is answered

    def refuse(self, request: Request, local: str) -> Answer | None:
        """What is answered if this is no request that anybody may make. `local`: our address, as this client has it."""
        if not self._is_ours(request.headers.get("host"), local):
            return _plain(403, "the Host of this request is not this server")
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "nothing can be changed here", "Allow: GET, HEAD\r\n")
        return None

    def answer(self, request: Request) -> Answer:
        match request.path:
            case "/metrics":
                kind = choose(request.headers.get("accept", ""))
                return Answer(200, kind, self._made(kind, lambda: self._write(kind)), "Vary: Accept\r\n")
            case "/status.json":
                return Answer(200, "application/json", self._made("json", self.as_json))
            case "/healthz":
                return _plain(200, "ok")  # said by the loop itself, in its turn
            case "/readyz":
                return _plain(503, "draining") if self._server.draining else _plain(200, "ok")
            case "/":
                return Answer(200, "text/html; charset=utf-8", PAGE, f"Content-Security-Policy: {POLICY}\r\n")
        return _plain(404, "there are /, /metrics, /healthz, /readyz and /status.json")

    def _is_ours(self, host: str | None, local: str) -> bool:
        """Else a page of a browser's other tab, whose name was made to lead here, would read this (DNS rebinding)."""
        if self._names is None or host is None:  # only programs leave it out
            return True
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.removeprefix("[").removesuffix("]").lower().removesuffix(".")
        return name in self._names or _is_same_address(name, local)

    def _write(self, kind: str) -> bytes:
        return self._texts[kind].write(families(self._figures.collect(), self._labels))

    def as_json(self) -> bytes:
        return json.dumps(for_json(self._figures.collect()), separators=(",", ":")).encode()

    def _made(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The same for all who ask within a moment, however many these are."""
        now = self._loop.time()
        made, text = self._fresh.get(name, (-FRESH, b""))
        if now - made >= FRESH:
            text = make()
            self._fresh[name] = now, text
        return text

    # Pages that watch

    def watch(self, connection: HttpConnection) -> bool:
        """Send it the figures again and again; whether there is room for one more."""
        if len(self._watchers) >= MAX_WATCHERS:
            return False
        self._watchers.add(connection)
        connection.send_event(b"event: history\ndata: %b\n\n" % json.dumps(list(self._history.points)).encode())
        connection.send_event(self._event())
        return True

    def _tell(self) -> None:
        """Each second."""
        if self._watchers:
            event = self._event()
            for connection in list(self._watchers):
                connection.send_event(event)

    def is_watching(self, connection: HttpConnection) -> bool:
        return connection in self._watchers

    def _event(self) -> bytes:
        point = json.dumps(self._history.points[-1]).encode()
        return b'data: {"point":%b,"figures":%b}\n\n' % (point, self._made("json", self.as_json))


class HttpConnection(asyncio.Protocol):
    """One client. What it asks is answered one after the other, one in a turn of the loop."""

    _transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser()
        self._local = ""
        self._since = self._loop.time()
        self._is_idle = False
        """It has had an answer, and asked for nothing since."""
        self._is_blocked = False
        self._is_due = False
        """It has its turn soon."""
        self._is_paused = False
        self._has_ended = False
        """It says no more, and may wait for an answer."""
        self._is_over = False
        """Nothing it says matters any more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        transport = self._transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        address = transport.get_extra_info("sockname")
        self._local = address[0] if isinstance(address, tuple) else ""
        self._server.enter(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over = True
        self._server.leave(self)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._is_idle:
            self._is_idle = False
            self._since = self._loop.time()
        self._parser.receive(data)
        if self._parser.buffered > MAX_HEAD:
            self._is_paused = True
            self._transport.pause_reading()
        self._go_on_soon()

    def eof_received(self) -> bool:
        self._has_ended = True
        return self._is_due or self._is_blocked

    def pause_writing(self) -> None:
        self._is_blocked = True
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        self._is_blocked = False
        self._since = self._loop.time()
        self._go_on_soon()

    def is_late(self, now: float) -> bool:
        if self._is_blocked or self._is_over:
            return now - self._since > TIMEOUT
        return not self._server.is_watching(self) and now - self._since > (IDLE_TIMEOUT if self._is_idle else TIMEOUT)

    def abort(self) -> None:
        self._is_over = True
        self._server.leave(self)
        self._transport.abort()

    def _go_on_soon(self) -> None:
        if not (self._is_due or self._is_blocked or self._is_over):
            self._is_due = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_due = False
        if self._is_over or self._is_blocked:
            return None
        try:
            request = self._parser.next_request()
        except BadRequest as error:
            return self._send(_plain(error.status, str(error)))
        if request is None:
            return self._wait_for_more()
        self._server.touch(self)
        answer = self._server.refuse(request, self._local)
        if answer is None and request.path == "/events" and request.method == "GET":
            return self._begin_events()
        try:
            answer = answer or self._server.answer(request)
        except Exception:
            log.exception("%s could not be shown", request.path)
            answer = _plain(500, "this could not be shown; the log says why")
        self._send(answer, keeps_alive=request.keeps_alive, with_body=request.method != "HEAD")
        self._go_on_soon()
        return None

    def _wait_for_more(self) -> None:
        if self._has_ended:
            self._close()
        elif self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _send(self, answer: Answer, *, keeps_alive: bool = False, with_body: bool = True) -> None:
        keeps_alive = keeps_alive and answer.status < 500 and answer.status not in (403, 405)
        head = (
            f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nContent-Type: {answer.kind}\r\n"
            f"Content-Length: {len(answer.body)}\r\nConnection: {'keep-alive' if keeps_alive else 'close'}\r\n"
            f"{SAFE}{answer.headers}\r\n"
        )
        self._transport.write(head.encode() + answer.body if with_body else head.encode())
        self._since = self._loop.time()
        self._is_idle = True
        if not keeps_alive:
            self._close()

    def _close(self) -> None:
        self._is_over = True
        self._transport.close()

    # Server-sent events

    def _begin_events(self) -> None:
        self._transport.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n{SAFE}\r\n".encode()
        )
        if not self._server.watch(self):
            self._transport.write(b"event: full\ndata: too many pages watch this server\n\n")
            self._close()

    def send_event(self, event: bytes) -> None:
        if not (self._is_blocked or self._is_over):  # else it misses this one
            self._transport.write(event)


def _is_same_address(name: str, local: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(local.partition("%")[0])
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
