"""A broker made of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from amqp_tools import GREETING, NONE, OPEN_OK, START, TUNE, deliver, method, returned

from mqcore.amqp.methods import decode

ANSWERS: dict[str, Callable[..., bytes]] = {
    "connection.start-ok": lambda channel, *_: TUNE,
    "connection.open": lambda channel, *_: OPEN_OK,
    "connection.close": lambda channel, *_: method(0, "connection.close-ok"),
    "channel.open": lambda channel, *_: method(channel, "channel.open-ok", b""),
    "channel.close": lambda channel, *_: method(channel, "channel.close-ok"),
    "confirm.select": lambda channel, *_: method(channel, "confirm.select-ok"),
    "basic.qos": lambda channel, *_: method(channel, "basic.qos-ok"),
    "basic.consume": lambda channel, _, queue, tag, *__: method(channel, "basic.consume-ok", tag or "made"),
    "basic.get": lambda channel, *_: method(channel, "basic.get-empty", ""),
    "queue.declare": lambda channel, _, queue, *__: method(channel, "queue.declare-ok", queue, 0, 0),
}


class Broker:
    """What it is told, as method names; each of them answered as `answers` says. `outcome` says of each message that is
    published, the first being 1, what becomes of it: "ack", "nack", "returned", "close" of the connection, or None."""

    def __init__(self, **answers: Callable[..., bytes] | None) -> None:
        self.answers = {**ANSWERS, **{name.replace("__", ".").replace("_", "-"): answer for name, answer in answers.items()}}
        self.names: list[str] = []
        self.heartbeats = 0
        self.sent: list[tuple[bytes, bytes]] = []
        self.outcome: Callable[[int], str | None] = lambda number: None
        self.writers: list[asyncio.StreamWriter] = []
        self.news = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        content = Content()
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            assert await reader.readexactly(8) == GREETING
            self.say(START)
            while True:
                head = await reader.readexactly(7)
                payload = await reader.readexactly(int.from_bytes(head[3:], "big") + 1)
                self.take(head[0], int.from_bytes(head[1:3], "big"), payload[:-1], writer, content)
        writer.close()

    def take(self, kind: int, channel: int, payload: bytes, writer: asyncio.StreamWriter, content: Content) -> None:
        if kind == 8:
            self.heartbeats += 1
        elif kind == 1:
            name, arguments = decode(payload)
            self.names.append(name)
            if name == "basic.publish":
                content.key = arguments[2]
            answer = self.answers.get(name)
            if answer is not None:
                writer.write(answer(channel, *arguments))
        elif content.add(kind, payload):
            self.sent.append((content.properties, content.body))
            self.settle(channel, content, writer)
        self.news.set()

    def settle(self, channel: int, content: Content, writer: asyncio.StreamWriter) -> None:
        outcome = self.outcome(len(self.sent))
        if outcome == "close":
            writer.transport.abort()
        elif outcome == "nack":
            writer.write(method(channel, "basic.nack", content.count, False, False))
        elif outcome is not None:
            back = returned(channel, content.properties) if outcome == "returned" else b""
            writer.write(back + method(channel, "basic.ack", content.count, False))

    def say(self, data: bytes) -> None:
        self.writers[-1].write(data)

    async def until(self, condition: Callable[[], Any], seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Content:
    """What is published on a connection."""

    count = 0
    key = ""

    def add(self, kind: int, payload: bytes) -> bool:
        """Whether that is all of a message."""
        if kind == 2:
            self.size, self.properties, self.body = int.from_bytes(payload[4:12], "big"), payload[12:], b""
            self.count += 1
        else:
            self.body += payload
        return len(self.body) == self.size


class Item:
    """A message in a queue."""

    def __init__(self, body: bytes, properties: bytes = NONE) -> None:
        self.body = body
        self.properties = properties
        self.redelivered = False


class QueueBroker(Broker):
    """One with queues, which its clients publish to and consume. What `outcome` has no opinion of is confirmed. `settled`: what
    consumers said of each message: "ack" or "nack", and its body."""

    def __init__(self, *, missing: Iterable[str] = (), **answers: Callable[..., bytes] | None) -> None:
        super().__init__(**answers)
        self.queues: dict[str, list[Item]] = defaultdict(list)
        self.missing = set(missing)
        self.settled: list[tuple[str, Item]] = []
        self.delivered = 0
        self.prefetches: list[int] = []
        self.requeues = True
        self.outcome = lambda number: "ack"
        self.consumers: dict[tuple[asyncio.StreamWriter, int], Consuming] = {}
        self._prefetch = 0
        self.answers["queue.declare"] = self._declare

    def put(self, queue: str, *messages: bytes | Item) -> None:
        self.queues[queue] += [each if isinstance(each, Item) else Item(each) for each in messages]
        self.pump()

    def bodies(self, queue: str) -> list[bytes]:
        return [item.body for item in self.queues[queue]]

    @property
    def acked(self) -> list[bytes]:
        return [item.body for how, item in self.settled if how == "ack"]

    @property
    def unsettled(self) -> int:
        return sum(len(consuming.items) for consuming in self.consumers.values())

    def _declare(self, channel: int, _: int, queue: str, *__: object) -> bytes:
        if queue in self.missing:
            return method(channel, "channel.close", 404, f"NOT_FOUND - no queue '{queue}' in vhost '/'", 50, 10)
        return method(channel, "queue.declare-ok", queue, len(self.queues[queue]), 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super().serve(reader, writer)
        for key in [key for key in self.consumers if key[0] is writer]:
            self._requeue(self.consumers.pop(key))
        self.pump()

    def _requeue(self, consuming: Consuming) -> None:
        for item in reversed(consuming.items.values()):
            item.redelivered = True
            self.queues[consuming.queue].insert(0, item)

    def take(self, kind: int, channel: int, payload: bytes, writer: asyncio.StreamWriter, content: Content) -> None:
        super().take(kind, channel, payload, writer, content)
        if kind != 1:
            return
        name, arguments = decode(payload)
        key = writer, channel
        if name == "basic.qos":
            self._prefetch = arguments[1]
            self.prefetches.append(arguments[1])
        elif name == "basic.consume":
            before = self.consumers.get(key) or Consuming(arguments[1])
            before.prefetch = self._prefetch
            self.consumers[key] = before
        elif name == "basic.cancel":
            writer.write(method(channel, "basic.cancel-ok", arguments[0]))
            self.consumers[key].prefetch = 0
        elif name in ("basic.ack", "basic.nack"):
            self._settle(self.consumers[key], name.removeprefix("basic."), arguments)
        self.pump()

    def _settle(self, consuming: Consuming, how: str, arguments: list[Any]) -> None:
        tag, multiple = arguments[:2]
        assert tag in consuming.items, "it was settled before, or is of another channel"
        for each in [each for each in consuming.items if each == tag or (multiple and each < tag)]:
            item = consuming.items.pop(each)
            self.settled.append((how, item))
            if how == "nack" and self.requeues:
                item.redelivered = True
                self.queues[consuming.queue].insert(0, item)

    def settle(self, channel: int, content: Content, writer: asyncio.StreamWriter) -> None:
        outcome = self.outcome(len(self.sent))
        if outcome == "ack":
            self.queues[content.key].append(Item(content.body, content.properties))
        super().settle(channel, content, writer)
        self.pump()

    def pump(self) -> None:
        """Give consumers what they may have."""
        for (writer, channel), consuming in self.consumers.items():
            items = self.queues[consuming.queue]
            while items and len(consuming.items) < consuming.prefetch and not writer.is_closing():
                item = items.pop(0)
                consuming.tag += 1
                consuming.items[consuming.tag] = item
                self.delivered += 1
                writer.write(deliver(channel, consuming.tag, item.body, item.properties, redelivered=item.redelivered))
        self.news.set()


class Consuming:
    """A consumer. One without a prefetch was cancelled."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.prefetch = self.tag = 0
        self.items: dict[int, Item] = {}


@contextlib.asynccontextmanager
async def broker(*, tls: ssl.SSLContext | None = None, **answers: Any) -> AsyncIterator[Broker]:
    async with serving(Broker(**answers), tls=tls) as it:
        yield it


@contextlib.asynccontextmanager
async def serving(it: Broker, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Broker]:
    """On the port that it had before, if it had one."""
    it.news = asyncio.Event()
    server = await asyncio.start_server(it.serve, "127.0.0.1", it.port, ssl=tls)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        for writer in it.writers:
            writer.transport.abort()
