"""kill -9 for each pair of a source and a sink: what was acknowledged is there, and twice is only what may be.

    python tests/faults/kills.py [--kills N] [--workers N] [--seed N] [SOURCE-SINK ...]

It runs `mqcore run`, kills it at a random moment, and starts it again. Clients of a server send each mail until they have
its 250; a file is read until its end is reached, and then another one is begun. With `--workers` a run has so many, and one of
them is killed each time, a few of them in a second. A line for each pair says

* how many mails were acknowledged, for each of their recipients, or for a file how many it has in all;
* how many of these are not at the next owner: `lost`;
* how many copies are there beyond the first: `doubles`;
* how many there may be: `bound`. Of a client's mail, a copy for each time that it got no reply at all; of a file's to a server,
  those that were on their way at the kills (`--max-in-flight` each time), and to a file none;
* how many copies are beyond even the mail's own bound: `beyond`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from faults_clients import Account, Client, acknowledge, doubles
from faults_command import GIVE_UP, kill_workers, run
from faults_tools import FILES, SERVERS, SINKS, Key, Owner, ServerOwner, options_for, owner, server, write_source

CLIENTS = 8
IN_FLIGHT = 20
"""Mails that a run from a file has on their way."""
MAILS = 600
"""In a file."""
PAIRS = [(source, sink) for source in (*SERVERS, *FILES) for sink in SINKS]
WORKERS_PAIRS = [(source, sink) for source in SERVERS for sink in SINKS if sink != "mbox"]
"""Those that a run with workers may have."""


class Figures(NamedTuple):
    kills: int
    acknowledged: int
    lost: int
    doubles: int
    bound: int
    beyond: int

    def __str__(self) -> str:
        return f"{self.kills:5} {self.acknowledged:12,} {self.lost:4} {self.doubles:7} {self.bound:5} {self.beyond:6}"

    @property
    def kept(self) -> bool:
        """The promise."""
        return self.lost == self.beyond == 0 and self.doubles <= self.bound


async def kill(source: str, sink: str, kills: int, workers: int, chance: random.Random, folder: Path) -> Figures:
    """So many times, for this pair; the run, or with `workers` one of these."""
    async with owner(sink, folder) as next_owner:
        if source in SERVERS:
            return await kill_server(source, sink, next_owner, kills, workers, chance, folder)
        return await kill_reader(source, sink, next_owner, kills, chance, folder)


# From clients


async def kill_server(
    source: str, sink: str, next_owner: Owner, kills: int, workers: int, chance: random.Random, folder: Path
) -> Figures:
    place, account = server(source, folder), Account()
    arguments = ("--from", place.url, "--to", next_owner.url, *place.options, *options_for(source, sink, folder))
    clients = [Client(place, account, itertools.count(number, CLIENTS)) for number in range(CLIENTS)]
    sending = asyncio.gather(*(client.run() for client in clients))
    if workers:
        await kill_workers(kills, workers, chance, folder, arguments)
    else:
        for _ in range(kills):
            with run(folder, *arguments) as command:
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.random() * 0.2)  # while it starts
                else:
                    await acknowledge(chance.randrange(60), account, command)
                assert command.is_running, command.describe()
    with run(folder, *arguments) as command:
        await acknowledge(50, account, command)
        for client in clients:
            client.enough = True
        await command.wait_for(sending.done)
        command.process.send_signal(signal.SIGTERM)
        assert await command.end() == 0, command.describe()
    assert not any((folder / "failed" / "new").iterdir()) and not next_owner.left_behind()
    assert not any(code.startswith("5") for code in account.replies)
    arrived = next_owner.arrived()
    figures = (len(account.acknowledged), account.lost(arrived), doubles(arrived), account.doubts.total())
    return Figures(kills, *figures, account.unexplained(arrived))


# From a file


async def kill_reader(source: str, sink: str, next_owner: Owner, kills: int, chance: random.Random, folder: Path) -> Figures:
    """File after file, each until all of it is there; only those runs count that had not ended."""
    done = bound = read = 0
    name = "a@example.org" if next_owner.names_recipients else ""
    wanted: set[Key] = set()
    while done < kills:
        path = folder / f"source.{read}"
        url = write_source(source, path, range(read, read + MAILS))
        arguments = ("--from", url, "--to", next_owner.url, "--max-in-flight", IN_FLIGHT, *options_for(source, sink, folder))
        while done < kills and await kill_run(next_owner, chance, folder, arguments):
            done += 1
            if isinstance(next_owner, ServerOwner):
                unnoted = await count_unnoted(next_owner, path, read)
                assert unnoted <= IN_FLIGHT
                bound += unnoted
        for _ in range(2):  # the second finds that all of it is there
            with run(folder, *arguments) as command:
                assert await command.end() == 0, command.describe()
        wanted |= {(number, name) for number in range(read, read + MAILS)}
        read += MAILS
    assert not any((folder / "failed" / "new").iterdir()) and not next_owner.left_behind()
    arrived = next_owner.arrived()
    extra = doubles(arrived)
    return Figures(done, read, len(wanted - arrived.keys()), extra, bound, max(extra - bound, len(arrived.keys() - wanted)))


async def kill_run(next_owner: Owner, chance: random.Random, folder: Path, arguments: Sequence[object]) -> bool:
    """Whether it was killed before it had ended: while it starts, or at some time after it has brought the first mails."""
    before = next_owner.progress()
    with run(folder, *arguments) as command:
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.2)
        else:
            while next_owner.progress() == before and command.is_running:
                await asyncio.sleep(0.001)
            await asyncio.sleep(chance.random() ** 2 * 0.3)
        return command.is_running


async def count_unnoted(server: ServerOwner, source: Path, first: int) -> int:
    """Mails that the next owner has, and of which the next run does not know."""
    async with asyncio.timeout(GIVE_UP):
        while server.connections:
            await asyncio.sleep(0.001)
    return sum(number >= first for number, _ in server.got) - count_noted(source)


def count_noted(source: Path) -> int:
    """Lines in the record of what is sent, if there is one yet."""
    records = source.glob("mqcore.sent.*") if source.is_dir() else source.parent.glob(f"{source.name}.sent.*")
    return sum(record.read_bytes().count(b"\n") for record in records)


# The program


def measure(pair: tuple[str, str], kills: int, seed: int, workers: int = 0) -> Figures:
    """In a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-kills-"))
    try:
        return asyncio.run(kill(*pair, kills, workers, random.Random(f"{seed} {pair}"), folder))
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Print a line for each pair; 1 if the promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    parser.add_argument("--workers", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("pairs", nargs="*", choices=[*map("-".join, PAIRS), []], metavar="SOURCE-SINK")
    given = parser.parse_args()
    kept = True
    print("source     sink     kills acknowledged lost doubles bound beyond seconds", flush=True)
    for source, sink in WORKERS_PAIRS if given.workers else PAIRS:
        if given.pairs and f"{source}-{sink}" not in given.pairs:
            continue
        begin = time.monotonic()
        try:
            figures: Figures | Exception = measure((source, sink), given.kills, given.seed, given.workers)
        except (AssertionError, TimeoutError) as error:
            figures = error
        right = isinstance(figures, Figures) and figures.kept
        shown = figures if isinstance(figures, Figures) else repr(figures)
        print(f"{source:10} {sink:8} {shown} {time.monotonic() - begin:7.0f}", "" if right else "BROKEN", flush=True)
        kept = kept and right
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
