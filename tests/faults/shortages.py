"""A machine that has too little, or is broken: a full disk, a disk that fails, few files, little memory, for each pair of a
source and a sink. A client is told to come again, one client never ends the server, and nothing is lost.

    python tests/faults/shortages.py [--fault FAULT] [SOURCE-SINK ...]

The faults are made by a library that is preloaded (faults.c) and by limits of the process. A line for each pair and fault: the
exit code, and, when what was short is there again and another run has brought all that there was: how many mails are `lost`,
how many copies are there beyond the first, and how many there may be, which are those that got no reply and those that
the run counted as `in_doubt`; and what clients were told, how many times each, or why the run ended.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import itertools
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from faults_clients import Account, Client, acknowledge, doubles
from faults_command import Command, Faults, forget_preloaded, run
from faults_tools import BIG, FILES, SERVERS, SINKS, Owner, options_for, owner, server, write_source

PAIRS = [*itertools.product(SERVERS, (*SINKS, "null")), *itertools.product(FILES, SINKS)]
DISK = {
    "disk full": ("write", errno.ENOSPC),
    "quota used up": ("write", errno.EDQUOT),
    "write fails": ("write", errno.EIO),
    "fsync fails": ("sync", errno.EIO),
}
LIMITS = ("64 files", "little memory")
CLIENTS = 80
SOME = 50
"""Mails before a fault, and after it."""
REFUSALS = 10
"""While it lasts."""
MAILS = range(1, 400)
"""In a file."""
BIG_MAILS = range(BIG, BIG + 2)
TRIES = 3
"""Of a big mail."""
FEW_FILES = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
LITTLE = {"clients": 4 << 20, "file": 12 << 20}
"""Bytes that a run may take beyond what it has when it has begun."""


class Case(NamedTuple):
    source: str
    sink: str
    fault: str

    def __str__(self) -> str:
        return f"{self.source:10} {self.sink:8} {self.fault:14}"

    @property
    def applies(self) -> bool:
        """Nobody writes to a disk who passes on what comes from a client; what is read from a file is noted beside it."""
        return self.fault in LIMITS or self.sink in FILES or self.source in FILES

    @property
    def ends_the_run(self) -> bool:
        """Where nobody waits, there is no use in going on; where the disk is broken, neither."""
        return self.fault in DISK and (self.source in FILES or DISK[self.fault][1] == errno.EIO)


CASES = [case for pair in PAIRS for fault in (*DISK, *LIMITS) if (case := Case(*pair, fault)).applies]


class Result(NamedTuple):
    code: int
    replies: str
    lost: int
    doubles: int
    bound: int

    def __str__(self) -> str:
        return f"{self.code:4} {self.lost:4} {self.doubles:7} {self.bound:5} {self.replies}"


async def suffer(case: Case) -> Result:
    """In a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-shortages-"))
    try:
        async with owner(case.sink, folder) as next_owner:
            return await (suffer_server if case.source in SERVERS else suffer_reader)(case, next_owner, folder)
    finally:
        shutil.rmtree(folder)


# From clients


async def suffer_server(case: Case, next_owner: Owner, folder: Path) -> Result:
    place, account = server(case.source, folder), Account()
    route = ("--from", place.url, "--to", next_owner.url, *place.options, *options_for(case.source, case.sink, folder))
    count = CLIENTS if case.fault == "64 files" else 8
    clients = [Client(place, account, itertools.count(number, count)) for number in range(count)]
    big = [Client(place, account, [number]) for number in (BIG_MAILS if case.fault == "little memory" else ())]
    sending = asyncio.gather(*(client.run() for client in (*clients, *big)))
    faults = Faults(folder)
    under = faults.under if case.fault in DISK else FEW_FILES if case.fault == "64 files" else ()
    with run(folder, *route, under=under) as command:
        await command.wait_for(lambda: "listening on" in command.said)
        if case.fault == "little memory":
            await acknowledge(1, account, command)
            limit_memory(command, LITTLE["clients"])
            await command.wait_for(lambda: all(client.tries > TRIES or not client.to for client in big))
        await acknowledge(SOME, account, command)
        if case.fault in DISK:
            faults.begin(*DISK[case.fault])
            if case.ends_the_run:
                await command.end()
            else:
                await command.wait_for(lambda: account.replies.total() >= REFUSALS)
            faults.end()
        if case.fault == "little memory":
            limit_memory(command, None)
        if command.is_running:
            await finish(clients, sending, account, command)
        code = await command.end()
        counts = command.figures["messages"]
    if not sending.done():
        with run(folder, *route) as command:
            await finish(clients, sending, account, command)
            assert await command.end() == 0, command.describe()
    bound = account.doubts.total() + counts["in_doubt"]
    arrived = next_owner.arrived() if case.sink != "null" else Counter(account.acknowledged)
    return Result(code, describe(account), account.lost(arrived), doubles(arrived), bound)


async def finish(clients: Sequence[Client], sending: asyncio.Future[Any], account: Account, command: Command) -> None:
    """Let each bring its mail, and stop."""
    await acknowledge(SOME, account, command)
    for client in clients:
        client.enough = True
    await command.wait_for(sending.done)
    command.process.send_signal(signal.SIGTERM)


def limit_memory(command: Command, more: int | None) -> None:
    """To so many bytes more than it has now, or not at all."""
    (size,) = re.findall(r"VmSize:\s+(\d+) kB", Path(f"/proc/{command.process.pid}/status").read_text())
    limit = resource.RLIM_INFINITY if more is None else (int(size) << 10) + more
    resource.prlimit(command.process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def describe(account: Account) -> str:
    told = [f"{count} x {code}" for code, count in sorted(account.replies.items())]
    if account.doubts:
        told.append(f"{account.doubts.total()} x no reply")
    return ", ".join(told) or "-"


# From a file


async def suffer_reader(case: Case, next_owner: Owner, folder: Path) -> Result:
    numbers = [*MAILS, *(BIG_MAILS if case.fault == "little memory" else ())]
    url = write_source(case.source, folder / "source", numbers)
    route = ("--from", url, "--to", next_owner.url, *options_for(case.source, case.sink, folder), "--max-in-flight", 20)
    faults = Faults(folder)
    under = faults.under if case.fault in DISK else FEW_FILES if case.fault == "64 files" else ()
    with run(folder, *route, under=under) as command:
        if case.fault != "64 files":
            await command.wait_for(next_owner.progress)
        if case.fault in DISK:
            faults.begin(*DISK[case.fault])
        elif case.fault == "little memory":
            limit_memory(command, LITTLE["file"])
        code = await command.end()
        figures = command.figures
    if case.fault in DISK:
        faults.end()
    bound = figures["messages"]["in_doubt"]
    told = (figures["error"] or "-").replace(str(folder), "")
    with run(folder, *route) as command:
        assert await command.end() == 0, command.describe()
    arrived = next_owner.arrived()
    name = "a@example.org" if next_owner.names_recipients else ""
    return Result(code, told, len({(number, name) for number in numbers} - arrived.keys()), doubles(arrived), bound)


# The program


def is_kept(case: Case, it: Result) -> bool:
    """The promise, and that no client ends a server."""
    codes = (4,) if case.ends_the_run else (0,) if case.source in SERVERS else (0, 1, 4)
    return it.code in codes and it.lost == 0 and it.doubles <= it.bound


def summary(ended: Sequence[tuple[Case, Result]]) -> Iterator[str]:
    """A line for each fault, from clients and from files."""
    yield "from    fault          cases codes lost doubles bound replies"
    for sources, name in ((SERVERS, "clients"), (FILES, "files")):
        for fault in (*DISK, *LIMITS):
            them = [it for case, it in ended if case.source in sources and case.fault == fault]
            if them:
                codes = " ".join(map(str, sorted({it.code for it in them})))
                lost, extra, bound = (sum(figures) for figures in zip(*(it[2:] for it in them), strict=True))
                replies = " ".join(sorted({code for it in them for code in re.findall(r"x (\d+|no reply)", it.replies)}))
                yield f"{name:7} {fault:14} {len(them):5} {codes:5} {lost:4} {extra:7} {bound:5} {replies or '-'}"


async def main() -> int:
    """Print a line for each, and a summary; 1 if the promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=(*DISK, *LIMITS), help="this one only")
    parser.add_argument("pairs", nargs="*", choices=[*map("-".join, PAIRS), []], metavar="SOURCE-SINK")
    given = parser.parse_args()
    kept = True
    ended: list[tuple[Case, Result]] = []
    print("source     sink     fault          code lost doubles bound what was said", flush=True)
    for case in CASES:
        if (given.pairs and f"{case.source}-{case.sink}" not in given.pairs) or given.fault not in (None, case.fault):
            continue
        try:
            result: Result | Exception = await suffer(case)
        except (AssertionError, TimeoutError) as error:
            result = error
        right = isinstance(result, Result) and is_kept(case, result)
        if isinstance(result, Result):
            ended.append((case, result))
        print(case, result if isinstance(result, Result) else repr(result), "" if right else "BROKEN", flush=True)
        kept = kept and right
    print("", *summary(ended), sep="\n")
    return 0 if kept else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    finally:
        forget_preloaded()
