"""What the tests of SMTP share."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import trustme
import uvloop
from waiting import until

import mqcore
from mqcore.mail import FailedSink, Gateway, Mail, SinkError, Store
from mqcore.mail.base import BaseSink
from mqcore.mail.smtp.server import SmtpServer
from mqcore.mail.smtp.source import LmtpSource, SmtpSource, SmtpsSource
from mqcore.smtp._protocol import ServerProtocol
from mqcore.smtp.events import Event, Service, StartTls

Answer = Callable[[ServerProtocol, Event], None]

EHLO = b"EHLO client.example\r\n"
LHLO = b"LHLO client.example\r\n"
OPEN = EHLO + b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
"""As far as a message may follow."""
STAGES = ("connect", "mailfrom", "rcptto", "data", "message")
MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
TEXT = b"Subject: hello\r\n\r\nhello\r\n"
ALL = OPEN + TEXT + b".\r\n"


@contextlib.contextmanager
def grows_by(*, most: int) -> Iterator[None]:
    """What runs within leaves no more octets in memory."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= most


def accept(protocol: ServerProtocol, event: Event) -> None:
    if isinstance(event, StartTls):
        protocol.secured()
    protocol.accept()


class Talk:
    """A protocol whose events are answered at once."""

    def __init__(self, answer: Answer = accept, *, secure: bool = False, **service: Any) -> None:
        self.protocol = ServerProtocol(Service(name="mx.example", **service), secure=secure)
        self.answer = answer
        self.events: list[Event] = []
        self.protocol.accept()
        self.out = self.protocol.take_output()

    def say(self, data: bytes) -> list[str]:
        """The replies to it, without line ends."""
        self.protocol.receive(data)
        while (event := self.protocol.next_event()) is not None:
            self.events.append(event)
            self.answer(self.protocol, event)
        out = self.protocol.take_output()
        self.out += out
        assert out.endswith(b"\r\n") or not out
        return out.decode("ascii").split("\r\n")[:-1]

    def ask(self, data: bytes) -> str:
        """The one reply to it."""
        (reply,) = self.say(data)
        return reply


def converse(pieces: Iterable[bytes], **options: Any) -> tuple[list[Event], bytes, bool]:
    """The events, all that the server said, and whether it closed the connection."""
    talk = Talk(**options)
    for piece in pieces:
        if talk.protocol.closed:
            break
        talk.say(piece)
    return talk.events, talk.out, talk.protocol.closed


def codes(replies: Iterable[str]) -> list[str]:
    """The codes of replies of one line each, with their enhanced codes."""
    return [reply[:9] if reply[4:5] in "245" and reply[5:6] == "." else reply[:3] for reply in replies]


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a test of a coroutine, on a uvloop of its own. The bound is for what hangs, on a machine with much else to do."""

    @functools.wraps(test)
    def wrapper(*arguments: Any, **options: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(*arguments, **options), 120))

    return wrapper


class ListSink(Store):
    """Keeps mails in memory. While `gate` is clear, storing waits; while `error` is set, it fails."""

    url = "list:"

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.groups: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.waits = threading.Event()
        self.error: str | None = None

    def store(self, mails: Sequence[Mail]) -> None:
        self.waits.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise SinkError(self.error)
        self.mails += mails
        self.groups.append(len(mails))


class Client:
    """A client that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> str:
        """The next reply, its lines joined by line ends."""
        lines = []
        while not lines or lines[-1][3:4] == "-":
            line = await self.reader.readline()
            assert line.endswith(b"\r\n"), line
            lines.append(line.decode().removesuffix("\r\n"))
        return "\n".join(lines)

    async def ask(self, data: bytes) -> str:
        self.send(data)
        return await self.reply()

    async def asks(self, data: bytes, count: int) -> list[str]:
        """Send it all, and get the codes of so many replies."""
        self.send(data)
        return codes([await self.reply() for _ in range(count)])

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self.writer.start_tls(context, server_hostname="localhost")

    async def is_closed(self) -> bool:
        """Wait until the server has closed the connection; what came before is dropped."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        return True

    def reset(self) -> None:
        """Let the connection end by a RST when the client leaves."""
        ours = self.writer.get_extra_info("socket")
        if ours is not None:  # which it is not when the connection is gone
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def half_close(self) -> None:
        """Send no more, but wait for replies."""
        self.writer.write_eof()

    def leave(self) -> None:
        """Without a word."""
        if not self.writer.transport.is_closing():
            self.reset()
        self.writer.transport.abort()


class Serving:
    """A server that runs."""

    def __init__(self, gateway: Gateway, sink: ListSink, failed: ListSink) -> None:
        self.gateway = gateway
        self.sink = sink
        self.failed = failed
        self.address = gateway.source.listeners[0].getsockname()
        self.port = gateway.source.port
        self._clients: list[Client] = []

    @property
    def server(self) -> SmtpServer:
        return self.gateway.source._server

    async def connect(self, **options: Any) -> Client:
        if isinstance(self.address, str):
            client = Client(*await asyncio.open_unix_connection(self.address, **options))
        else:
            client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self._clients.append(client)
        return client

    async def greeted(self, **options: Any) -> Client:
        """A client that has said EHLO or LHLO."""
        client = await self.connect(**options)
        assert (await client.reply()).startswith("220 ")
        assert (await client.ask(LHLO if self.gateway.source.lmtp else EHLO)).startswith("250-")
        return client

    async def opened(self) -> Client:
        """A client that may send its message."""
        client = await self.greeted()
        assert await client.asks(OPEN.removeprefix(EHLO), 3) == ["250 2.1.0", "250 2.1.5", "354"]
        return client

    until = staticmethod(until)

    async def leave(self) -> None:
        for client in self._clients:
            client.leave()
        await self.until(lambda: not self.server.host.connections)


@contextlib.asynccontextmanager
async def serving(
    plugins: Mapping[str, object] | None = None,
    *,
    mixed: bool = False,
    tls: str | None = None,
    lmtp: bool = False,
    at: str = "//127.0.0.1:0",
    **options: Any,
) -> AsyncIterator[Serving]:
    """A server with these plugins. `mixed` gives it a sink for failed mails; `tls` is "starttls" or "implicit"; `sink` takes
    the place of a `ListSink`."""
    loaded = mqcore.Plugins()
    for name, plugin in (plugins or {}).items():
        loaded.add(name, plugin)
    kind = LmtpSource if lmtp else SmtpsSource if tls == "implicit" else SmtpSource
    listening = {name: options.pop(name) for name in inspect.signature(kind).parameters if name in options}
    if tls is not None:
        listening["tls_certificate"] = str(certificate().file)
    stored, failed = ListSink(), ListSink()
    sink: BaseSink = options.pop("sink", stored)
    watchdog = options.pop("watchdog", None)
    with contextlib.closing(kind(at, **listening)) as source, mqcore.Dispatcher(loaded, watchdog=watchdog) as dispatcher:
        gateway = Gateway(dispatcher, source, sink, FailedSink(failed, source.url) if mixed else None, **options)
        running = asyncio.create_task(gateway.run())
        it = Serving(gateway, stored, failed)
        try:
            yield it
        finally:
            stored.gate.set()
            gateway.stop()
            await it.leave()
        counts = (await running).counts
        ends = (counts.continued, counts.completed, counts.failed, counts.rejected, counts.discarded, counts.unfinished)
        assert counts.read == sum(ends), counts
        assert counts.stored == len(stored.mails) or sink is not stored
        assert it.server.host.reserved == gateway.in_flight == gateway.bytes == 0


class Certificate(NamedTuple):
    file: Path
    """The key, and the certificate for localhost."""
    authority: Path
    """Whom to trust."""
    client: ssl.SSLContext
    """Trusts it."""


@functools.cache
def certificate() -> Certificate:
    authority = trustme.CA()
    folder = tempfile.mkdtemp(prefix="mqcore-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "server.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    authority.cert_pem.write_to_path(Path(folder) / "authority.pem")
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Certificate(file, Path(folder) / "authority.pem", client)


def plugin(**stages: Any) -> SimpleNamespace:
    """With hooks by their stages."""
    return SimpleNamespace(**{f"mq_smtp_in_{stage}": hook for stage, hook in stages.items()})


class Holds:
    """Holds what comes to one stage, until it is told otherwise."""

    def __init__(self, stage: str) -> None:
        self.held: list[tuple[Any, Any]] = []
        self.closed = 0
        setattr(self, f"mq_smtp_in_{stage}", self._hold)

    def _hold(self, context: Any, message: Any, *arguments: Any) -> bool:
        self.held.append((context, message))
        return True

    def mq_smtp_in_close(self, context: Any, message: Any) -> None:
        self.closed += 1

    def release(self) -> None:
        for context, message in self.held:
            context.continue_(message)
        self.held.clear()
