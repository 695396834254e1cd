"""A next server that does one thing wrong, a few times, and is sound otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from waiting import until

SOUND = {"greeting": "220 mx", "data": "354 go", "message": "250 queued"}
SOUND |= dict.fromkeys(("mailfrom", "rcptto", "rset"), "250 ok")
HELLO = b"250-mx\r\n250-PIPELINING\r\n250-SIZE\r\n250 8BITMIME\r\n"


class Talk:
    """One connection to it."""

    def __init__(self, server: WrongServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def reply(self, stage: str) -> None:
        """As it should."""
        self.say(HELLO if stage == "ehlo" else SOUND[stage].encode() + b"\r\n")

    def close(self) -> None:
        raise ConnectionError

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        raise ConnectionError

    async def line(self) -> bytes:
        return await self.reader.readuntil(b"\r\n")

    async def rest(self) -> None:
        """Whatever else comes, until the other side has had enough."""
        while await self.reader.read(10_000):
            pass
        self.close()


Wrong = Callable[[Talk, str], Awaitable[None] | None]


class Case(NamedTuple):
    """What is done wrong at a stage: greeting, ehlo, mailfrom, rcptto, data, body (354 is said), message, rset, idle."""

    stage: str
    wrong: Wrong
    lmtp: bool = False
    keeps: int = 1000
    """For so many recipients it keeps the message when it does this, whatever it says."""


class WrongServer:
    """What it has got wholly is in `got`, with the recipients, whether it said so or not."""

    def __init__(self, case: Case, times: int) -> None:
        self.case = case
        self.times = times
        self.got: list[tuple[bytes, str]] = []
        self.open = 0
        self.port = 0
        self.talks: set[Talk] = set()
        self.server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        talk = Talk(self, reader, writer)
        self.talks.add(talk)
        try:
            await self.talk(talk)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self.talks.discard(talk)
            writer.close()

    async def answer(self, talk: Talk, stage: str) -> bool:
        """Whether it did so as it should."""
        if stage != self.case.stage or self.times == 0:
            if stage not in ("body", "idle"):
                talk.reply(stage)
            return True
        self.times -= 1
        if (waiting := self.case.wrong(talk, stage)) is not None:
            await waiting
        return False

    async def talk(self, talk: Talk) -> None:
        recipients: list[str] = []
        await self.answer(talk, "greeting")
        while True:
            line = await talk.line()
            match line[:4].upper():
                case b"EHLO" | b"LHLO":
                    await self.answer(talk, "ehlo")
                case b"HELO":
                    talk.say(b"250 mx\r\n")
                case b"MAIL":
                    recipients = []
                    await self.answer(talk, "mailfrom")
                case b"RCPT":
                    recipients.append(re.findall(rb"<(.*)>", line)[0].decode())
                    await self.answer(talk, "rcptto")
                case b"DATA":
                    await self.answer(talk, "data")
                    await self.answer(talk, "body")
                    content = (await talk.reader.readuntil(b"\r\n.\r\n")).removesuffix(b".\r\n")
                    is_wrong = self.case.stage == "message" and self.times > 0
                    keeps = self.case.keeps if is_wrong else len(recipients)
                    self.got += [(content, recipient) for recipient in recipients[:keeps]]
                    if await self.answer(talk, "message"):
                        for _ in recipients[1:] if self.case.lmtp else ():
                            talk.reply("message")
                    await self.answer(talk, "idle")
                case b"RSET":
                    await self.answer(talk, "rset")
                case b"QUIT":
                    talk.say(b"221 bye\r\n")
                    return
                case _:
                    talk.say(b"500 what?\r\n")

    @property
    def doubles(self) -> int:
        counted = Counter(self.got)
        return sum(counted.values()) - len(counted)


@contextlib.asynccontextmanager
async def wrong_server(case: Case, times: int) -> AsyncIterator[WrongServer]:
    it = WrongServer(case, times)
    it.server = await asyncio.start_server(it.serve, "127.0.0.1", 0, limit=1 << 24)
    it.port = it.server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        it.server.close()
        for talk in list(it.talks):
            talk.writer.transport.abort()
        await until(lambda: not it.open)


# What can be wrong


def says(data: bytes) -> Wrong:
    return lambda talk, stage: talk.say(data)


def says_and_closes(data: bytes) -> Wrong:
    def wrong(talk: Talk, stage: str) -> None:
        talk.say(data)
        talk.close()

    return wrong


def says_and_is_silent(data: bytes) -> Wrong:
    async def wrong(talk: Talk, stage: str) -> None:
        talk.say(data)
        await talk.rest()

    return wrong


def closes(talk: Talk, stage: str) -> None:
    talk.close()


def resets(talk: Talk, stage: str) -> None:
    talk.reset()


async def says_it_byte_by_byte(talk: Talk, stage: str) -> None:
    for byte in (HELLO if stage == "ehlo" else SOUND[stage].encode() + b"\r\n"):
        talk.say(bytes([byte]))
        await asyncio.sleep(0.001)


def says_it_with_bare_lf(talk: Talk, stage: str) -> None:
    talk.say(HELLO.replace(b"\r", b"") if stage == "ehlo" else SOUND[stage].encode() + b"\n")


async def never_ends(talk: Talk, stage: str) -> None:
    while not talk.writer.is_closing():
        talk.say(b"250-x\r\n" * 100)
        await asyncio.sleep(0)


async def takes_only_the_first_of_a_group(talk: Talk, stage: str) -> None:
    """As servers do that drop what came too early."""
    talk.reply(stage)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await talk.reader.read(10_000)


async def takes_nothing_of_the_message(talk: Talk, stage: str) -> None:
    talk.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    talk.writer.transport.pause_reading()
    await asyncio.sleep(0.05)
    talk.say(b"250 queued, as I know it already\r\n")
    await asyncio.sleep(0.1)
    talk.close()


async def speaks_later(talk: Talk, stage: str) -> None:
    """The connection is in the pool by then."""
    await asyncio.sleep(0.02)
    talk.say(b"550 and another thing\r\n")


STAGES = ("greeting", "ehlo", "mailfrom", "rcptto", "data", "message")
CASES: dict[str, Case] = {}
for _stage in (*STAGES, "body", "idle"):
    CASES[f"closes at {_stage}"] = Case(_stage, closes)
for _stage in ("ehlo", "data", "body", "message", "idle"):
    CASES[f"resets at {_stage}"] = Case(_stage, resets)
for _stage in (*STAGES, "body", "idle"):
    CASES[f"421 at {_stage}"] = Case(_stage, says_and_closes(b"421 4.3.2 going\r\n"), keeps=0)
for _stage in STAGES:
    CASES[f"garbage at {_stage}"] = Case(_stage, says(b"what?\r\n"))
    CASES[f"half a reply at {_stage}"] = Case(_stage, says_and_closes(b"250-2.0"))
for _stage in ("ehlo", "rcptto", "message"):
    CASES[f"silent at {_stage}"] = Case(_stage, says_and_is_silent(b""))
    CASES[f"half a reply, then silent at {_stage}"] = Case(_stage, says_and_is_silent(b"250-2.0.0 o"))
    CASES[f"byte by byte at {_stage}"] = Case(_stage, says_it_byte_by_byte)
    CASES[f"bare LF at {_stage}"] = Case(_stage, says_it_with_bare_lf)
    CASES[f"a reply without an end at {_stage}"] = Case(_stage, never_ends)
    CASES[f"NUL at {_stage}"] = Case(_stage, says(b"\0\0\0\0\r\n"))
    CASES[f"pipelining broken at {_stage}"] = Case(_stage, takes_only_the_first_of_a_group)
CASES |= {
    "pipelining broken at mailfrom": Case("mailfrom", takes_only_the_first_of_a_group),
    "two greetings": Case("greeting", says(b"220 hi\r\n220 hi again\r\n")),
    "250 to DATA": Case("data", says(b"250 ok\r\n")),
    "354 to MAIL": Case("mailfrom", says(b"354 go\r\n")),
    "354 to the message": Case("message", says(b"354 go on\r\n")),
    "a reply too many to RCPT": Case("rcptto", says(b"250 ok\r\n250 ok\r\n")),
    "a reply too few to RCPT": Case("rcptto", says(b"")),
    "250 together with 354": Case("data", says(b"354 go\r\n250 queued\r\n")),
    "250 before it has all": Case("body", takes_nothing_of_the_message),
    "two replies to a message": Case("message", says(b"250 queued\r\n550 no, after all\r\n")),
    "a second reply to a message, later": Case("idle", speaks_later),
    "RSET is refused": Case("rset", says(b"500 what?\r\n")),
    "LMTP: a reply too few, then closed": Case("message", says_and_closes(b"250 stored\r\n"), lmtp=True),
    "LMTP: a reply too few, then silent": Case("message", says_and_is_silent(b"250 stored\r\n"), lmtp=True),
    "LMTP: a reply too many": Case("message", says(b"250 stored\r\n" * 3), lmtp=True),
    "LMTP: garbage for the second": Case("message", says(b"250 stored\r\nwhat?\r\n"), lmtp=True),
    "LMTP: 421 for the second": Case("message", says_and_closes(b"250 stored\r\n421 going\r\n"), lmtp=True, keeps=1),
    "LMTP: half a reply for the second": Case("message", says_and_closes(b"250 stored\r\n25"), lmtp=True),
    "LMTP: closes in the body": Case("body", closes, lmtp=True),
}
