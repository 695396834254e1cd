"""The other side of the milter protocol: a mail server that asks."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

from smtp_tools import plugin

from mqcore.mail import Mail
from mqcore.milter.packets import packet, parameters

OFFER = packet(b"O", struct.pack("!III", 6, 0x1FF, 0x1FFFFF))
REPLIES = b"cydart"
"""What ends a question; all else is said beside."""
NO_REPLY = {b"C": 0x1000, b"H": 0x2000, b"M": 0x4000, b"R": 0x8000}


def split_packets(data: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    while data:
        (length,) = struct.unpack_from("!I", data)
        found.append((data[4:5], data[5 : 4 + length]))
        data = data[4 + length :]
    return found


def judge() -> Any:
    """A plugin that refuses recipients and mails, for good and for now, drops some, and fails at others."""

    def at_recipient(context: Any, message: Mail, address: str) -> None:
        if address.startswith("nobody"):
            message.reject(550, "5.1.1 100% no such user")

    def at_message(context: Any, mail: Mail) -> None:
        if b"fail" in mail.mime:
            raise ValueError("a bug")
        if b"later" in mail.mime:
            mail.reject(450, "4.7.1 later")
        if b"drop" in mail.mime:
            mail.discard()
        if mail.recipient == "choosy@example.org":
            mail.reject(554, "5.7.1 not for me")

    return plugin(rcptto=at_recipient, message=at_message)


class Mta:
    """One that behaves as Postfix does, or as Sendmail. What it was told beside the last reply is in `said`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: str) -> None:
        self._reader, self._writer = reader, writer
        self._version = version.encode()
        self.steps = 0
        self.said: list[tuple[bytes, bytes]] = []

    @classmethod
    async def at(cls, where: Any, version: str = "Postfix 3.7.11") -> Mta:
        """Connected, and with the versions agreed upon."""
        connect = asyncio.open_unix_connection(where) if isinstance(where, str) else asyncio.open_connection("127.0.0.1", where)
        mta = cls(*await connect, version)
        mta.send(OFFER)
        command, data = await mta.read()
        assert command == b"O"
        mta.steps = struct.unpack("!III", data)[2]
        return mta

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def read(self) -> tuple[bytes, bytes]:
        async with asyncio.timeout(60):
            (length,) = struct.unpack("!I", await self._reader.readexactly(4))
            data = await self._reader.readexactly(length)
        return data[:1], data[1:]

    async def reply(self) -> str:
        """As `continue`, `discard`, or what is said to the client."""
        self.said = []
        while (received := await self.read())[0] not in REPLIES:
            self.said.append(received)
        command, data = received
        return {b"c": "continue", b"d": "discard"}.get(command) or data.removesuffix(b"\0").decode()

    async def ask(self, command: bytes, data: bytes = b"", macros: Sequence[bytes] = ()) -> str:
        """What is said to one command, with its macros; `continue` where it gets no reply."""
        self.send(packet(b"D", command + parameters(*macros)) + packet(command, data))
        return "continue" if self.steps & NO_REPLY.get(command, 0) else await self.reply()

    async def connect(self, peer: str = "192.0.2.7", helo: str = "client.example") -> str:
        address = b"4" + struct.pack("!H", 2525) + peer.encode() + b"\0"
        reply = await self.ask(b"C", b"client.example\0" + address, (b"j", b"mx.example", b"v", self._version))
        return reply if reply != "continue" else await self.ask(b"H", helo.encode() + b"\0")

    async def send_mail(self, mime: bytes, sender: str = "a@example.org", *recipients: str) -> str:
        """A whole transaction: what ends it."""
        if (reply := await self.ask(b"M", f"<{sender}>\0".encode(), (b"i", b"QUEUE"))) != "continue":
            return reply
        refusals = []
        for recipient in recipients or ("b@example.org",):
            if (reply := await self.ask(b"R", f"<{recipient}>\0".encode())) != "continue":
                refusals.append(reply)
        if len(refusals) == len(recipients or " "):
            return refusals[0]
        return await self.send_content(mime)

    async def send_content(self, mime: bytes) -> str:
        """With CRLF at the end of lines."""
        self.begin_content(mime)
        reply = await self.reply()
        self.send(packet(b"A"))
        return reply

    def begin_content(self, mime: bytes) -> None:
        header, _, body = mime.partition(b"\r\n\r\n")
        self.send(packet(b"T"))
        for line in header.replace(b"\r\n\t", b"\n\t").replace(b"\r\n ", b"\n ").split(b"\r\n"):
            name, _, value = line.partition(b":")
            self.send(packet(b"L", parameters(name, value)))
        self.send(packet(b"N"))
        for at in range(0, len(body), 65_535):
            self.send(packet(b"B", body[at : at + 65_535]))
        self.send(packet(b"D", b"E" + parameters(b"i", b"QUEUE")) + packet(b"E"))

    def leave(self) -> None:
        if not self._writer.is_closing():
            self.send(packet(b"Q"))
            self._writer.close()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def is_closed(self) -> bool:
        """Whether the other side has closed, and said nothing more."""
        async with asyncio.timeout(60):
            return await self._reader.read() == b""
