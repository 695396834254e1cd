"""What the tests of sending by SMTP share: next servers that say what they are told to, and a run that delivers to them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from smtp_tools import ListSink
from waiting import until

import mqcore
from mqcore.mail import FailedSink, Gateway, Origin, Reader, Report
from mqcore.mail.smtp.sink import SmtpSink

DROP = "drop"
"""In place of an answer: close the connection."""
SILENCE = "silence"

TEXT = b"Subject: hello\n\nhello\n"
STAGES = ("mailfrom", "rcptto", "data", "message")


class NextServer:
    """Speaks SMTP, or LMTP to who begins with LHLO, and answers each stage with what the script has for it, one after the
    other, and then with success.

    Stages are greeting, ehlo, starttls (without TLS), mailfrom, rcptto, data, message and rset; an answer to a RCPT may
    also be scripted by its address. `mails` are those that it said 250 to, as (sender, recipients, content), and `seen`
    all that it was sent, however it answered.
    """

    def __init__(self, script: Mapping[str, Iterable[str]] | None = None) -> None:
        self.script = defaultdict(list, {stage: list(answers) for stage, answers in (script or {}).items()})
        self.extensions = ["SIZE", "8BITMIME", "SMTPUTF8"]
        self.mails: list[tuple[str, list[str], bytes]] = []
        self.seen: list[bytes] = []
        self.commands: list[str] = []
        self.connections = self.open = self.most_open = 0
        self.silent = asyncio.Event()
        """Set when it kept silent."""
        self.speak = asyncio.Event()
        """Ends all silence, with success."""
        self.max_open = 1000
        """Beyond that it greets nobody."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Also again, on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and all connections."""
        assert self._server is not None
        self._server.close()
        self.disconnect()
        await self._server.wait_closed()

    def disconnect(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        self._writers.add(writer)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, recipients, lmtp = "", [], False
        if self.open > self.max_open:
            writer.write(b"421 4.7.0 too many connections\r\n")
            return
        await self._answer(writer, "220 next.example", "greeting")
        while line := (await reader.readuntil(b"\r\n")).decode().removesuffix("\r\n"):
            self.commands.append(line)
            address = match[1] if (match := re.search("<(.*)>", line)) else ""
            match line.split(" ")[0].split(":")[0]:
                case "EHLO" | "LHLO" as hello:
                    lmtp = hello == "LHLO"
                    lines = [f"250-{line}" for line in ("next.example", *self.extensions)]
                    await self._answer(writer, "\r\n".join([*lines, "250 HELP"]), "ehlo")
                case "HELO":
                    await self._answer(writer, "250 next.example", "helo")
                case "MAIL":
                    sender, recipients = address, []
                    await self._answer(writer, "250 2.1.0 ok", "mailfrom")
                case "RCPT":
                    if (await self._answer(writer, "250 2.1.5 ok", address, "rcptto")).startswith("2"):
                        recipients.append(address)
                case "DATA":
                    if (await self._answer(writer, "354 go on", "data")).startswith("354"):
                        content = (await reader.readuntil(b"\r\n.\r\n")).removesuffix(b".\r\n")
                        self.seen.append(content)
                        for taken in [[each] for each in recipients] if lmtp else [recipients]:
                            if (await self._answer(writer, "250 2.0.0 queued", "message")).startswith("2"):
                                self.mails.append((sender, taken, content))
                case "STARTTLS":
                    await self._answer(writer, "220 go ahead", "starttls")
                    return
                case "RSET":
                    await self._answer(writer, "250 2.0.0 ok", "rset")
                case "QUIT":
                    await self._answer(writer, "221 2.0.0 bye", "quit")
                    return

    async def _answer(self, writer: asyncio.StreamWriter, answer: str, *stages: str) -> str:
        for stage in stages:
            if self.script[stage]:
                answer = self.script[stage].pop(0)
                break
        if answer == DROP:
            raise ConnectionError
        if answer == SILENCE:
            self.silent.set()
            await self.speak.wait()
            answer = "354 go on" if stages == ("data",) else "250 ok"
        writer.write(answer.encode() + b"\r\n")
        return answer


@contextlib.asynccontextmanager
async def next_server(script: Mapping[str, Iterable[str]] | None = None) -> AsyncIterator[NextServer]:
    server = NextServer(script)
    await server.start()
    try:
        yield server
    finally:
        server.speak.set()
        await server.stop()
        await until(lambda: not server.open)


class ListSource(Reader):
    """Mails as if they came from a file."""

    url = "list:"

    def __init__(self, mails: Iterable[bytes], envelope: str | None, recipient: str | None) -> None:
        self._origins = [
            Origin(mime, f"{number:032x}", number, envelope, recipient=recipient) for number, mime in enumerate(mails)
        ]
        self.path = Path("list")
        self.total, self.done = len(self._origins), 0

    def __iter__(self) -> Iterator[Origin]:
        yield from self._origins


class FailedList(ListSink):
    """Keeps also the reasons."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.notes = folder / "reasons.jsonl"


class Delivering:
    """A run from a file to a next server."""

    def __init__(self, gateway: Gateway, failed: FailedList) -> None:
        self.gateway = gateway
        self.failed = failed
        self.running = asyncio.create_task(gateway.run())

    async def end(self) -> Report:
        report = await self.running
        counts = report.counts
        ends = (counts.present, counts.continued, counts.completed, counts.failed, counts.rejected, counts.unfinished)
        assert counts.read == sum(ends), counts
        pool = self.gateway.sink._sender.pool
        assert self.gateway.in_flight == self.gateway.bytes == pool._open == len(pool._waiting) == 0
        return report

    until = staticmethod(until)


@contextlib.asynccontextmanager
async def delivering(
    server: NextServer,
    folder: Path,
    mails: Iterable[bytes] = (TEXT,),
    plugins: Mapping[str, object] | None = None,
    *,
    envelope: str | None = "a@example.org",
    recipient: str | None = "b@example.org",
    sink: SmtpSink | None = None,
    **options: Any,
) -> AsyncIterator[Delivering]:
    """Such a run, with a record in `folder`; the block may let it go on, and end by `end`."""
    loaded = mqcore.Plugins()
    for name, plugin in (plugins or {}).items():
        loaded.add(name, plugin)
    failed = FailedList(folder)
    sink = sink or SmtpSink(f"//127.0.0.1:{server.port}", source=folder / "mbox")
    source = ListSource(mails, envelope, recipient)
    with contextlib.closing(sink), mqcore.Dispatcher(loaded) as dispatcher:
        it = Delivering(Gateway(dispatcher, source, sink, FailedSink(failed, source.url), **options), failed)
        try:
            yield it
        finally:
            it.gateway.stop()
            await it.end()


async def deliver(*arguments: Any, **options: Any) -> tuple[Report, FailedList]:
    """The same, to its end."""
    async with delivering(*arguments, **options) as it:
        return await it.end(), it.failed
