"""SIGTERM in every phase, with the client there and gone: the run ends within 30 seconds, and nothing is lost.

    python tests/faults/stops.py [--at-once N] [SOURCE ...]

A line for each source, sink, phase and client: seconds from SIGTERM to the end of the process; its exit code; when another run
has brought what there was to the next owner: how many mails are `lost`, how many copies are there beyond the first, and how
many there may be, which are those whose client was told nothing, and those that the first run counted as `in_doubt` or
`unanswered`; and the replies that the client had. At the end the same by phases.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from faults_clients import FROM, Account, Client, doubles, read_reply
from faults_command import GIVE_UP, Command, Faults, forget_preloaded, run
from faults_tools import (
    FILES,
    SERVERS,
    SINKS,
    Owner,
    ServerOwner,
    Source,
    options_for,
    owner,
    server,
    write_source,
)
from mail_tools import write_plugin

NUMBER = 3
"""The mail, which has three recipients."""
LIMIT = 30
"""Seconds."""
MAILS = range(1, 400)
"""In a file."""
SLOW = """
    import time

    def mq_smtp_in_message(context, message):
        time.sleep(0.01)  # or all is stored before it is stopped
    """
HOLDS = """
    import pathlib

    def mq_smtp_in_message(context, message):
        context.data.setdefault("held", []).append(message)
        pathlib.Path(context.config["reached"]).touch()
        return True
    """


class Case(NamedTuple):
    source: str
    sink: str
    phase: str
    client: str
    """`there`, `gone`, or `none`, for a file."""

    def __str__(self) -> str:
        return f"{self.source:10} {self.sink:8} {self.phase:15} {self.client:6}"


class Stopped(NamedTuple):
    seconds: float
    code: int
    replies: str
    lost: int
    doubles: int
    bound: int

    def __str__(self) -> str:
        return f"{self.seconds:7.1f} {self.code:4} {self.lost:4} {self.doubles:7} {self.bound:5} {self.replies}"


COMMITTING = [(sink, "committing") for sink in FILES]
SILENT = [(sink, f"silent at {command}") for sink in ("smtp", "lmtp") for command in ("MAIL", "DATA", "body")]
OF_SERVERS = [(sink, phase) for phase in ("connected", "in MAIL", "in DATA", "held") for sink in (*SINKS, "null")]
OF_FILES = [(sink, "held") for sink in (*SINKS, "null")]
CASES = [
    *(
        Case(source, *where, client)
        for source in SERVERS
        for where in (*OF_SERVERS, *COMMITTING, *SILENT)
        for client in ("there", "gone")
    ),
    *(Case(source, *where, "none") for source in FILES for where in (*OF_FILES, *COMMITTING, *SILENT)),
]


async def stop(case: Case) -> Stopped:
    """In a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-stops-"))
    try:
        async with owner(case.sink, folder) as next_owner:
            return await (stop_server if case.source in SERVERS else stop_reader)(case, next_owner, folder)
    finally:
        shutil.rmtree(folder)


class Hindrance:
    """What keeps a run in a phase, until it is told to go on."""

    def __init__(self, case: Case, next_owner: Owner, folder: Path) -> None:
        self.phase = case.phase
        self.options: tuple[object, ...] = ()
        self.under: tuple[str, ...] = ()
        self._owner = next_owner
        self._reached = folder / "reached"
        if case.phase == "held":
            plugin = write_plugin(folder / "holds", "10-hold", HOLDS)
            config = folder / "holds.toml"
            config.write_text(f'[plugins.10-hold]\nreached = "{self._reached}"\nhold_timeout = 600\n')
            self.options = ("--plugins", plugin, "--config", config)
        elif case.phase == "committing":
            self._faults = Faults(folder)
            self._reached, self.under = self._faults.reached, self._faults.under
        elif isinstance(next_owner, ServerOwner) and case.phase.startswith("silent"):
            next_owner.silent_at = case.phase.split()[-1].replace("body", ".")

    def begin(self) -> None:
        if self.phase == "committing":
            self._faults.begin("sync", 0)

    def is_reached(self) -> bool:
        if isinstance(self._owner, ServerOwner) and self.phase.startswith("silent"):
            return self._owner.silent.is_set()
        return self._reached.exists()

    def go_on(self) -> None:
        """Where that is not what the run is stopped in spite of."""
        if self.phase == "committing":
            self._faults.end()

    def end(self) -> None:
        if isinstance(self._owner, ServerOwner):
            self._owner.silent_at = ""


async def stop_now(command: Command, hindrance: Hindrance) -> float:
    """When it was."""
    begin = time.monotonic()
    command.process.send_signal(signal.SIGTERM)
    await command.wait_for(lambda: "stopping when" in command.said)
    hindrance.go_on()
    return begin


# From clients


async def stop_server(case: Case, next_owner: Owner, folder: Path) -> Stopped:
    place, account = server(case.source, folder), Account()
    hindrance = Hindrance(case, next_owner, folder)
    route = ("--from", place.url, "--to", next_owner.url, *place.options, *options_for(case.source, case.sink, folder))
    with run(folder, *route, *hindrance.options, under=hindrance.under) as command:
        await command.wait_for(lambda: "listening on" in command.said)
        hindrance.begin()
        client = Interrupted(place, account, case.phase)
        talking = asyncio.create_task(client.run())
        await command.wait_for(client.is_there.is_set)
        if case.phase not in ("connected", "in MAIL", "in DATA"):
            await command.wait_for(hindrance.is_reached)
        if case.client == "gone":
            client.leave()
            await talking
        begin = await stop_now(command, hindrance)
        code = await command.end()
        seconds = time.monotonic() - begin
        await talking
        counts = command.figures["messages"]
    hindrance.end()
    bound = counts["in_doubt"] + max(counts["unanswered"], account.doubts.total())
    if case.sink == "null":
        return Stopped(seconds, code, client.describe(), 0, 0, bound)
    with run(folder, *route) as command:
        await command.wait_for(lambda: "listening on" in command.said)
        async with asyncio.timeout(GIVE_UP):
            await asyncio.gather(*(Client(place, account, [number]).run() for number in (NUMBER, NUMBER + 1)))
        command.process.send_signal(signal.SIGTERM)
        assert await command.end() == 0, command.describe()
    arrived = next_owner.arrived()
    return Stopped(seconds, code, client.describe(), account.lost(arrived), doubles(arrived), bound)


class Interrupted(Client):
    """Gets as far as a phase, and then does nothing but listen."""

    def __init__(self, source: Source, account: Account, phase: str) -> None:
        super().__init__(source, account, [NUMBER])
        self.is_there = asyncio.Event()
        self.told: list[str] = []
        """Codes, from then on, unless they are replies to the mail."""
        self._phase = phase
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        reader, self._writer = await self.source.connect()
        with contextlib.closing(self._writer), contextlib.suppress(OSError, EOFError):
            await self._greet(reader, self._writer)
            if self._phase != "connected":
                await self._begin(reader, self._writer)
            self.is_there.set()
            if self._phase not in ("connected", "in MAIL", "in DATA"):
                await self._conclude(reader)
            while True:
                self.told.append(await read_reply(reader))

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(FROM)
        await self._expect(reader, "250")
        if self._phase != "in MAIL":
            writer.write(self._recipients() + b"DATA\r\n")
            for reply in (*("250" for _ in self.to), "354"):
                await self._expect(reader, reply)
            content = self._content()
            writer.write(content[: len(content) // 2] if self._phase == "in DATA" else content)

    def leave(self) -> None:
        """Reset the connection; a Unix socket can only be closed, which may mean that it is only closed for writing."""
        assert self._writer is not None
        if not isinstance(self.source.address, str):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def describe(self) -> str:
        """What it was told."""
        acknowledged = ["250"] * (len(self.account.acknowledged) if self.source.lmtp else bool(self.account.acknowledged))
        return " ".join([*acknowledged, *self.account.replies.elements(), *self.told]) or "-"


# From a file


async def stop_reader(case: Case, next_owner: Owner, folder: Path) -> Stopped:
    hindrance = Hindrance(case, next_owner, folder)
    url = write_source(case.source, folder / "source", MAILS)
    route = ("--from", url, "--to", next_owner.url, *options_for(case.source, case.sink, folder))
    if case.phase == "committing":
        hindrance.options = ("--plugins", write_plugin(folder / "slow", "10-slow", SLOW))
    with run(folder, *route, "--max-in-flight", 20, *hindrance.options, under=hindrance.under) as command:
        if case.phase == "committing":
            await command.wait_for(next_owner.progress)
            hindrance.begin()
        await command.wait_for(hindrance.is_reached)
        begin = await stop_now(command, hindrance)
        code = await command.end()
        seconds = time.monotonic() - begin
        in_doubt = command.figures["messages"]["in_doubt"]
    hindrance.end()
    with run(folder, *route) as command:
        assert await command.end() == 0, command.describe()
    if case.sink == "null":
        return Stopped(seconds, code, "-", 0, 0, 0)
    arrived = next_owner.arrived()
    name = "a@example.org" if next_owner.names_recipients else ""
    return Stopped(seconds, code, "-", len({(number, name) for number in MAILS} - arrived.keys()), doubles(arrived), in_doubt)


# The program


async def measure(cases: Sequence[Case], at_once: int = 8) -> AsyncIterator[tuple[Case, Stopped | Exception]]:
    """As they end; they wait most of the time."""
    room = asyncio.Semaphore(at_once)

    async def one(case: Case) -> tuple[Case, Stopped | Exception]:
        async with room:
            try:
                return case, await stop(case)
            except (AssertionError, TimeoutError) as error:
                return case, error

    for ended in asyncio.as_completed([one(case) for case in cases]):
        yield await ended


def is_kept(case: Case, it: Stopped | Exception) -> bool:
    """The promise, and the exit codes."""
    if isinstance(it, Exception):
        return False
    return it.code == (0 if case.source in SERVERS else 143) and it.lost == 0 and it.doubles <= it.bound


def summary(ended: Sequence[tuple[Case, Stopped]]) -> Iterator[str]:
    """A line for each phase, with the client there and gone, or none."""
    yield "phase           client cases codes   longest lost doubles bound"
    by_phase: dict[tuple[str, str], list[Stopped]] = {}
    for case, it in sorted(ended, key=lambda one: CASES.index(one[0])):
        by_phase.setdefault((case.phase, case.client), []).append(it)
    for (phase, client), them in by_phase.items():
        codes = " ".join(map(str, sorted({it.code for it in them})))
        longest = max(it.seconds for it in them)
        lost, extra, bound = (sum(figures) for figures in zip(*(it[3:] for it in them), strict=True))
        yield f"{phase:15} {client:6} {len(them):5} {codes:7} {longest:7.1f} {lost:4} {extra:7} {bound:5}"


async def main() -> int:
    """Print a line for each, and a summary; 1 if the promise was broken, or it took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=8, metavar="N")
    parser.add_argument("sources", nargs="*", choices=[*SERVERS, *FILES, []], metavar="SOURCE")
    given = parser.parse_args()
    cases = [case for case in CASES if not given.sources or case.source in given.sources]
    kept = True
    ended: list[tuple[Case, Stopped]] = []
    print("source     sink     phase           client seconds code lost doubles bound replies", flush=True)
    async for case, it in measure(cases, given.at_once):
        right = is_kept(case, it)
        if isinstance(it, Stopped):
            ended.append((case, it))
            right = right and it.seconds < LIMIT
        print(case, it if isinstance(it, Stopped) else repr(it), "" if right else "BROKEN", flush=True)
        kept = kept and right
    print("", *summary(ended), sep="\n")
    return 0 if kept else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    finally:
        forget_preloaded()
