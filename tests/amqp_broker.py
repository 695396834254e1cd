"""A broker made of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from amqp_tools import GREETING, OPEN_OK, START, TUNE, method, returned

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

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Content:
    """What is published on a connection."""

    count = 0

    def add(self, kind: int, payload: bytes) -> bool:
        """Whether that is all of a message."""
        if kind == 2:
            self.size, self.properties, self.body = int.from_bytes(payload[4:12], "big"), payload[12:], b""
            self.count += 1
        else:
            self.body += payload
        return len(self.body) == self.size


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
