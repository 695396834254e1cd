"""Clients that send mails until they are taken, and the account of what they were told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable

from faults_command import Command
from faults_tools import Key, Source, recipients, text


class Account:
    """What clients know of their mails."""

    def __init__(self) -> None:
        self.acknowledged: set[Key] = set()
        self.doubts: Counter[Key] = Counter()
        """How often all of a mail was sent, and no reply came."""
        self.replies: Counter[str] = Counter()
        """To a command or a mail, when it was not success."""

    def lost(self, arrived: Counter[Key]) -> int:
        """How many are acknowledged, and not there."""
        return len(self.acknowledged - arrived.keys())

    def unexplained(self, arrived: Counter[Key]) -> int:
        """Copies beyond one for the 250, and one for each time that its client was told nothing."""
        return (arrived - (Counter(self.acknowledged) + self.doubts)).total()


def doubles(arrived: Counter[Key]) -> int:
    return arrived.total() - len(arrived)


FROM = b"MAIL FROM:<from@example.org>\r\n"


class Refused(Exception):
    """By a reply; the connection is left."""


class Client:
    """Sends one mail after the other, each again and again to those recipients for whom it has not got its 250."""

    def __init__(self, source: Source, account: Account, numbers: Iterable[int], *, pause: float = 0.01) -> None:
        self.source = source
        self.account = account
        self.pause = pause
        """Seconds from one connection to the next."""
        self.enough = False
        self.tries = 0
        """Connections."""
        self._numbers = iter(numbers)
        self._take_next()

    async def run(self) -> None:
        """Until there are no more, or `enough`."""
        while self.to:
            with contextlib.suppress(OSError, EOFError, Refused):
                await self._talk()
            if self.to:
                await asyncio.sleep(self.pause)

    def _take_next(self) -> None:
        self.number = -1 if self.enough else next(self._numbers, -1)
        self._left = recipients(self.number) if self.number >= 0 else []

    @property
    def to(self) -> list[str]:
        """Who has not got the mail, as far as is known."""
        return [name for name in self._left if (self.number, name) not in self.account.acknowledged]

    async def _talk(self) -> None:
        self.tries += 1
        reader, writer = await self.source.connect()
        with contextlib.closing(writer):
            await self._greet(reader, writer)
            while self.to:
                await self._send(reader, writer)
                if not self.to:
                    self._take_next()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._expect(reader, "220")
        writer.write(b"%b client.example\r\n" % (b"LHLO" if self.source.lmtp else b"HELO"))
        await self._expect(reader, "250")

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(FROM + self._recipients() + b"DATA\r\n")
        for reply in ("250", *("250" for _ in self.to), "354"):
            await self._expect(reader, reply)
        writer.write(self._content())
        await self._conclude(reader)
        if self.to:
            raise Refused

    def _recipients(self) -> bytes:
        return b"".join(b"RCPT TO:<%b>\r\n" % name.encode() for name in self.to)

    def _content(self) -> bytes:
        return text(self.number).replace(b"\n.", b"\n..").replace(b"\n", b"\r\n") + b".\r\n"

    async def _conclude(self, reader: asyncio.StreamReader) -> None:
        """Wait for what becomes of a mail that is sent, and note it."""
        groups = [[name] for name in self.to] if self.source.lmtp else [self.to]
        codes: list[str] = []
        try:
            while len(codes) < len(groups):
                codes.append(await read_reply(reader))
                if codes[-1] == "421":  # which is to all of them
                    codes += ["421"] * (len(groups) - len(codes))
        finally:
            for group in groups[len(codes) :]:
                self.account.doubts.update((self.number, name) for name in group)
            for group, code in zip(groups, codes, strict=False):
                if code == "250":
                    self.account.acknowledged.update((self.number, name) for name in group)
                else:
                    self.account.replies[code] += 1

    async def _expect(self, reader: asyncio.StreamReader, wanted: str) -> None:
        if (code := await read_reply(reader)) != wanted:
            self.account.replies[code] += 1
            raise Refused


async def read_reply(reader: asyncio.StreamReader) -> str:
    """Its code."""
    while (line := await reader.readline())[3:4] == b"-":
        pass
    if not line.endswith(b"\n"):
        raise EOFError
    return line[:3].decode()


async def acknowledge(count: int, account: Account, command: Command) -> None:
    """Wait until so many more are."""
    wanted = len(account.acknowledged) + count
    await command.wait_for(lambda: len(account.acknowledged) >= wanted)
