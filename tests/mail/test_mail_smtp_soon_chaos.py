"""Next servers that do anything at any time, while mails go both ways to them: the books add up."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from sending_tools import FailedList, ListSource
from smtp_tools import certificate, run
from waiting import until

import mqcore
from mqcore.mail import FailedSink, Gateway
from mqcore.mail.smtp.sink import LmtpSink, SmtpSink

HELLO = b"250-mx\r\n250-PIPELINING\r\n250-SIZE 20000\r\n250 8BITMIME\r\n"
HELLO_TLS = HELLO.replace(b"250-SIZE", b"250-STARTTLS\r\n250-SIZE")
GOOD = {"mailfrom": b"250 ok\r\n", "rcptto": b"250 ok\r\n", "data": b"354 go\r\n", "message": b"250 queued\r\n"}
REFUSALS = [b"550 5.7.1 no\r\n", b"451 4.3.0 later\r\n", b"452-4.5.3\r\n452 too many\r\n", b"554\r\n"]
ODD = [
    b"250-two\r\n250 \r\n", b"250\r\n", b"250 ok\n", b"250 \xc3\xa4\r\n", b"251 else\r\n", b"250 a  b\r\n", b"99", b"2",
    b"354 go on\r\n", b"what?\r\n", b"\0\0\r\n", b"", b"250 ok\r\n250 ok\r\n", b"250 " + b"x" * 2000 + b"\r\n", b"421 x\r\n",
]  # fmt: skip


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate().file)
    return context


class Server:
    """Does something else than it should with a chance of `wrong`, at each step."""

    def __init__(self, chance: random.Random, wrong: float, lmtp: bool, tls: ssl.SSLContext | None) -> None:
        self.chance, self.wrong, self.lmtp, self.tls = chance, wrong, lmtp, tls
        self.got: Counter[tuple[str, bytes]] = Counter()
        """What it keeps, by recipient and subject, whether it said so or not."""
        self.open = 0
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.writers.add(writer)
        try:
            writer.write(b"220 mx\r\n")
            await self.talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, RuntimeError):  # uvloop: it is closed already
            pass
        finally:
            self.open -= 1
            self.writers.discard(writer)
            writer.close()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken: list[str] = []
        hello = HELLO_TLS if self.tls else HELLO
        while True:
            line = await reader.readuntil(b"\r\n")
            match line[:4]:
                case b"EHLO" | b"LHLO":
                    writer.write(hello)
                case b"STAR" if self.happens():
                    writer.write(b"454 4.7.0 no TLS now\r\n")
                    if self.happens():
                        self.go(writer)
                case b"STAR":
                    writer.write(b"220 go\r\n")
                    if self.happens():
                        self.go(writer)
                    await writer.start_tls(self.tls)
                    hello = HELLO
                case b"MAIL":
                    taken = []
                    await self.say(writer, "mailfrom")
                case b"RCPT":
                    if (await self.say(writer, "rcptto"))[:1] == b"2":
                        taken += [to.decode() for to in re.findall(rb"<(.*)>", line)]
                case b"DATA":
                    if (await self.say(writer, "data")).startswith(b"354"):
                        if self.happens():
                            await reader.readexactly(5)
                            self.go(writer)
                        content = await reader.readuntil(b"\r\n.\r\n")
                        await self.keep(writer, taken, content.split(b"\r\n")[0])
                        if self.happens():  # it has had enough
                            if self.happens():
                                writer.write(b"421 4.4.2 idle\r\n")
                            self.go(writer)
                case b"QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                case b"RSET":
                    writer.write(b"250 ok\r\n")
                case _:
                    writer.write(b"500 what?\r\n")

    def happens(self) -> bool:
        return self.chance.random() < self.wrong

    def go(self, writer: asyncio.StreamWriter) -> None:
        if self.happens():
            writer.transport.abort()
        raise ConnectionError

    async def keep(self, writer: asyncio.StreamWriter, taken: list[str], subject: bytes) -> None:
        for group in [[to] for to in taken] if self.lmtp else [taken]:
            if self.happens() and self.happens():
                self.go(writer)
            said = await self.say(writer, "message", keeps=lambda: self.got.update((to, subject) for to in group))  # noqa: B023
            if said not in (*REFUSALS, GOOD["message"]) and self.happens():
                self.go(writer)

    async def say(self, writer: asyncio.StreamWriter, stage: str, keeps: Any = lambda: None) -> bytes:
        reply = GOOD[stage]
        if self.happens():
            reply = self.chance.choice(REFUSALS if self.chance.random() < 0.4 else ODD)
            if not reply and stage in ("mailfrom", "rcptto"):
                reply = GOOD[stage]  # with one too many before it, nobody could tell
        if reply not in REFUSALS and not reply.startswith(b"421"):
            keeps()  # also if it does not get round to saying so
            if self.happens() and self.happens():
                self.go(writer)
        how = self.chance.random()
        cut = self.chance.randrange(len(reply) + 1)
        if how < 0.1:
            for at in range(len(reply)):
                writer.write(reply[at : at + 1])
                await asyncio.sleep(0)
        elif how < 0.3:
            writer.write(reply[:cut])
            await asyncio.sleep(self.chance.random() * 0.002)
            writer.write(reply[cut:])
        else:
            writer.write(reply)
        if self.happens() and self.happens():
            self.go(writer)
        return reply


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL, "mqcore")
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.001,) * 30)
    for name in ("CONNECT_TIMEOUT", "COMMAND_TIMEOUT", "ANSWER_TIMEOUT"):
        monkeypatch.setattr(f"mqcore.mail.smtp.outgoing.{name}", 0.1)
    monkeypatch.setattr("mqcore.mail.smtp.pool.MORE_AFTER", 0.0)
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 4)


@pytest.mark.parametrize("tls", [False, True], ids=["in the clear", "tls"])
@pytest.mark.parametrize("seed", range(8))
@run
async def test_chaos(seed, tls, tmp_path, monkeypatch):
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.3)
    chance = random.Random(seed)
    lmtp = seed % 3 == 0
    stops_after = chance.randrange(90) if seed % 4 == 3 else None

    def to_some(context: Any, message: Any) -> None:
        count = chance.choice([1, 1, 2, 3])
        message.recipients = [f"{number}@example.org" for number in range(count)]
        recipients[message.mime.split(b"\n")[0]] = message.recipients

    recipients: dict[bytes, list[str]] = {}
    mails = [b"Subject: %d\n\n%b\n" % (number, b"x" * chance.choice([1, 1, 1, 5000, 30000])) for number in range(120)]
    mails[7] += b"\0"
    plugins = mqcore.Plugins()
    plugins.add("10-to", SimpleNamespace(mq_smtp_in_message=to_some))
    it = Server(chance, chance.choice([0.01, 0.05]), lmtp, server_context() if tls else None)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    source, failed = ListSource(mails, "a@example.org", None), FailedList(tmp_path)
    sink = (LmtpSink if lmtp else SmtpSink)(f"//127.0.0.1:{port}", source=tmp_path / "mbox")
    with mqcore.Dispatcher(plugins) as dispatcher:
        gateway = Gateway(dispatcher, source, sink, FailedSink(failed, source.url), max_in_flight=chance.choice([1, 10, 400]))
        running = asyncio.create_task(gateway.run())
        if stops_after is not None:
            await until(lambda: running.done() or gateway.report.counts.stored >= stops_after)
            gateway.stop()
        async with asyncio.timeout(60):
            report = await running
    pool, record = sink._sender.pool, sink.record
    sink.close()
    server.close()
    for writer in list(it.writers):
        writer.transport.abort()
    await until(lambda: not it.open)
    counts = report.counts
    assert errors == [] and report.error is None
    ends = (counts.present, counts.continued, counts.completed, counts.failed, counts.rejected, counts.unfinished)
    assert counts.read == sum(ends) and (stops_after is not None or (counts.read == len(mails) and not counts.unfinished)), (
        counts
    )
    assert gateway.in_flight == gateway.bytes == pool._open == len(pool._waiting) == len(pool._jobs) == len(pool._begun) == 0
    assert [room._value for room in pool._rooms] == [4, 5, 6, 7]
    doubles = sum(it.got.values()) - len(it.got)
    assert doubles <= counts.in_doubt * 3, (doubles, counts)
    noted = [line for line in record.path.read_text().splitlines() if " " not in line]
    whole = {b"Subject: %d" % int(id, 16) for id in noted}
    assert len(noted) == len(whole) >= counts.stored
    for subject in whole:
        assert {to for to, of in it.got if of == subject} == set(recipients[subject])
    refused = {mail.origin.mime.split(b"\n")[0] for mail in failed.mails}
    assert not refused & whole and (stops_after is not None or len(refused | whole) == len(mails))
