"""The peers of `mqcore run --from milter:`, each a program that listens on 127.0.0.1 until it is stopped.

    python milter_servers.py uvloop|pymilter|pymilter-noreply PORT

Each sees the whole mail and puts one field on top of it. *uvloop* is the least that a milter in Python can do: a protocol that
takes every packet for one that is right, keeps fields and body, and calls nothing.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any

import uvloop

STEPS = 0x1FF000 | 0x100 | 0x80
"""No replies to anything but the end of a mail, no unknown commands, and fields byte for byte."""
LENGTH = struct.Struct("!I")


def packet(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


NEGOTIATED = packet(b"O" + struct.pack("!III", 6, 0x1FF, STEPS))
ANSWER = packet(b"i\0\0\0\1X-Filtered\0 yes\0") + packet(b"c")


class Floor(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.rest = b""
        self.macros: dict[bytes, bytes] = {}
        self.forget()

    def forget(self) -> None:
        self.recipients: list[bytes] = []
        self.fields: list[list[bytes]] = []
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        at, end = 0, len(data)
        while end - at > 4:
            (size,) = LENGTH.unpack_from(data, at)
            if end - at < 4 + size:
                break
            self.handle(data[at + 4 : at + 5], data[at + 5 : at + 4 + size])
            at += 4 + size
        self.rest = data[at:]

    def handle(self, command: bytes, data: bytes) -> None:
        if command == b"L":
            self.fields.append(data.split(b"\0"))
        elif command == b"B":
            self.body.append(data)
        elif command == b"D":
            self.macros[data[:1]] = data
        elif command == b"R":
            self.recipients.append(data)
        elif command == b"E":
            self.transport.write(ANSWER)
            self.forget()
        elif command == b"O":
            self.transport.write(NEGOTIATED)
        elif command == b"Q":
            self.transport.close()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port)
    await server.serve_forever()


def serve_pymilter(port: int, *, replies: bool) -> None:
    import Milter

    def quiet(function: Any) -> Any:
        return function if replies else Milter.noreply(function)

    class Filter(Milter.Base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.forget()

        def forget(self) -> None:
            self.recipients: list[str] = []
            self.fields: list[tuple[str, str]] = []
            self.content: list[bytes] = []

        @quiet
        def connect(self, name: str, family: Any, address: Any) -> Any:
            return Milter.CONTINUE

        @quiet
        def hello(self, name: str) -> Any:
            return Milter.CONTINUE

        @quiet
        def envfrom(self, sender: str, *parameters: str) -> Any:
            self.forget()
            return Milter.CONTINUE

        @quiet
        def envrcpt(self, recipient: str, *parameters: str) -> Any:
            self.recipients.append(recipient)
            return Milter.CONTINUE

        @quiet
        def data(self) -> Any:
            return Milter.CONTINUE

        @quiet
        def header(self, name: str, value: str) -> Any:
            self.fields.append((name, value))
            return Milter.CONTINUE

        @quiet
        def eoh(self) -> Any:
            return Milter.CONTINUE

        @quiet
        def body(self, chunk: bytes) -> Any:
            self.content.append(chunk)
            return Milter.CONTINUE

        def eom(self) -> Any:
            self.addheader("X-Filtered", "yes", 0)
            return Milter.CONTINUE

    Milter.factory = Filter
    Milter.set_flags(Milter.ADDHDRS)
    Milter.runmilter("bench", f"inet:{port}@127.0.0.1", 0)


if __name__ == "__main__":
    _, kind, number = sys.argv
    if kind == "uvloop":
        uvloop.run(serve(int(number)))
    else:
        serve_pymilter(int(number), replies=kind == "pymilter")
