"""A small HTTP server on the loop, which shows figures and changes nothing.

It shares the loop with the mail, so whatever its clients do, it takes little: a few connections, one request of all of them in
a turn, text that is made once for all who ask at the same time, and nothing is kept for those who do not read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Self, cast

from ..mail.files import raise_file_limit
from ..mail.listening import listen_on
from ..mail.smtp.hostname import own_hostname
from ..mail.unix_socket import UnixSocket
from .exposition import OPENMETRICS, TEXT, Exposition, choose
from .history import History
from .http_request import MAX_HEAD, BadRequest, Request, RequestParser
from .page import PAGE, POLICY
from .server import Server
from .shown import Shown

MAX_CONNECTIONS = 64
"""With one more, the one that is idle for longest makes room. Where the process may open few files, an eighth of these."""
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
SAME = "same-origin"
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
    """Shows the figures of a server, or of what is `Shown` in its place, at `address`, as `address.parse_address` returns it,
    from `start` to `close`."""

    def __init__(self, server: Server | Shown, address: tuple[str, int] | str) -> None:
        """Raises OSError, with a text for people, when nothing can listen there."""
        self._shown = Shown(server) if isinstance(server, Server) else server
        self._texts = {kind: Exposition(kind) for kind in (TEXT, OPENMETRICS)}
        self._fresh: dict[str, tuple[float, bytes]] = {}
        self._connections: dict[HttpConnection, None] = {}
        """Who has been idle for longest comes first."""
        self._watchers: set[HttpConnection] = set()
        self._most = raise_file_limit(8 * MAX_CONNECTIONS) // 8
        self._sweeping: asyncio.TimerHandle | None = None
        self._waiting: deque[HttpConnection] = deque()
        """For their turn."""
        self._making: asyncio.Task[None] | None = None
        """The figures as JSON."""
        self._wanting: list[Callable[[], object]] = []
        """What is called when they are made."""
        self._history = History(self._shown, self._tell)
        self._loop = asyncio.get_running_loop()
        self._listening: list[asyncio.AbstractServer] = []
        self._unix: UnixSocket | None = None
        if isinstance(address, str):
            self._unix = UnixSocket(address)
            self._sockets = [self._unix.listener]
            self._names: frozenset[str] | None = None  # no browser reaches it by a name
            self.url = f"unix:{address}"
        else:
            host, port = address
            is_all = host == "::"  # also of IPv4, as people expect
            self._sockets = listen_on("" if is_all else host, port)
            found, port = self._sockets[0].getsockname()[:2]
            host = host if is_all else found
            names = ("localhost", address[0], host, socket.gethostname(), own_hostname())
            self._names = frozenset(map(str.lower, names))
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    async def __aenter__(self) -> Self:
        listen = self._loop.create_unix_server if self._unix is not None else self._loop.create_server
        for one in self._sockets:
            self._listening.append(await listen(lambda: HttpConnection(self), sock=one, backlog=BACKLOG))
        self._history.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and listen no more."""
        for listening in self._listening:
            listening.close()
        for connection in list(self._connections):
            connection.abort()
        self._history.stop()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._making is not None:
            self._making.cancel()
        for one in self._sockets:
            one.close()
        if self._unix is not None:
            self._unix.close()

    # Connections

    def enter(self, connection: HttpConnection) -> None:
        if len(self._connections) >= self._most:
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

    def give_turn(self, connection: HttpConnection) -> None:
        """Let it go on, soon."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        try:
            self._waiting[0].go_on()
        finally:
            self._waiting.popleft()  # not before: what more it asks for comes after the others
            if self._waiting:
                self._loop.call_soon(self._next_turn)

    # What is answered

    def refuse(self, request: Request, local: str) -> Answer | None:
        """What is answered if this is no request that anybody may make. `local`: our address, as this client has it."""
        if not self._is_ours(request.headers.get("host"), local):
            return _plain(403, "the Host of this request is not this server")
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "nothing can be changed here", "Allow: GET, HEAD\r\n")
        if request.path == "/events" and request.headers.get("sec-fetch-site", SAME) != SAME:
            return _plain(403, "the page that asks is not this server's")  # it would take the place of one that is
        return None

    def answer(self, request: Request, *, is_made: bool) -> Answer | None:
        """None: it is to be made first, see `when_made`; `is_made`: that was done."""
        match request.path:
            case "/metrics":
                kind = choose(request.headers.get("accept", ""))
                text = self._fresh_text(kind)
                if text is None and self._shown.waits and not is_made:
                    return None
                text = text or self._keep(kind, self._write(kind))
                return Answer(200, kind, text, "Vary: Accept\r\n")
            case "/status.json":
                made = self._fresh["json"][1] if is_made else self._fresh_text("json")
                return None if made is None else Answer(200, "application/json", made)
            case "/healthz":
                return _plain(200, "ok")  # said by the loop itself, in its turn
            case "/readyz":
                return _plain(503, "draining") if self._shown.draining else _plain(200, "ok")
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
        return self._texts[kind].write(self._shown.families())

    def _fresh_text(self, name: str) -> bytes | None:
        """What was made within a moment is the same for all who ask, however many these are."""
        made, text = self._fresh.get(name, (-FRESH, b""))
        return text if self._loop.time() - made < FRESH else None

    def _keep(self, name: str, text: bytes) -> bytes:
        self._fresh[name] = self._loop.time(), text
        return text

    def when_made(self, call: Callable[[], object]) -> None:
        """Make the figures as JSON, which takes some turns of the loop, and call this."""
        self._wanting.append(call)
        if self._making is None:
            self._making = self._loop.create_task(self._make())

    async def _make(self) -> None:
        try:
            self._keep("json", (await self._shown.as_json()).encode())
        except Exception:
            log.exception("the figures could not be written")
            self._fresh.pop("json", None)
        self._making = None
        wanting, self._wanting = self._wanting, []
        for call in wanting:
            self._loop.call_soon(call)

    # Pages that watch

    def watch(self, connection: HttpConnection) -> bool:
        """Send it the figures again and again; whether there is room for one more."""
        if len(self._watchers) >= MAX_WATCHERS:
            return False
        self._watchers.add(connection)
        connection.send_event(b"event: history\ndata: [%b]\n\n" % b",".join(self._history.encoded))
        self.when_made(lambda: self._send_event([connection]))
        return True

    def _tell(self) -> None:
        """Each second."""
        if self._watchers:
            self.when_made(lambda: self._send_event(list(self._watchers)))

    def _send_event(self, connections: list[HttpConnection]) -> None:
        if "json" in self._fresh:  # else the log says why it is not
            point, figures = self._history.encoded[-1], self._fresh["json"][1]
            event = b'data: {"point":%b,"figures":%b}\n\n' % (point, figures)
            for connection in connections:
                connection.send_event(event)

    def is_watching(self, connection: HttpConnection) -> bool:
        return connection in self._watchers


class HttpConnection(asyncio.Protocol):
    """One client. What it asks is answered one after the other, when it has its turn."""

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
        self._request: Request | None = None
        """That is not answered yet, as the answer is being made."""

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
        if self._is_over or self._server.is_watching(self):
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
            self._server.give_turn(self)

    def go_on(self) -> None:
        """It has its turn."""
        self._is_due = False
        if self._is_over or self._is_blocked:
            return None
        try:
            is_made = self._request is not None
            request = self._request or self._parser.next_request()
        except BadRequest as error:
            return self._send(_plain(error.status, str(error)))
        self._request = None
        if request is None:
            return self._wait_for_more()
        self._server.touch(self)
        answer = self._server.refuse(request, self._local)
        if answer is None and request.path == "/events" and request.method == "GET":
            return self._begin_events()
        try:
            answer = answer or self._server.answer(request, is_made=is_made)
        except Exception:
            log.exception("%s could not be shown", request.path)
            answer = _plain(500, "this could not be shown; the log says why")
        if answer is None:
            self._request, self._is_due = request, True
            self._server.when_made(lambda: self._server.give_turn(self))
            return None
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
