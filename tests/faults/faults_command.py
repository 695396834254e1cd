"""The command as the programs of faults run it: in a process of its own, under faults of the system, with its last words."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mail_tools import Process, start

from mqcore.workers.supervisor import MOST_EARLY_CRASHES

GIVE_UP = 120.0
"""Seconds until what is waited for does not come any more."""

ENDS = ("present", "continued", "completed", "failed", "rejected", "discarded", "retried", "unfinished")
"""Of a message that was read, one."""


@functools.cache
def preloaded() -> Path:
    """faults.c, compiled."""
    library = Path(tempfile.mkdtemp(prefix="mqcore-faults-"), "faults.so")
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


def forget_preloaded() -> None:
    if preloaded.cache_info().currsize:
        shutil.rmtree(preloaded().parent)
        preloaded.cache_clear()


class Command:
    """One run, in `folder`, where it leaves what it says."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def describe(self) -> str:
        return f"exit code {self.process.poll()}: {self.said[-2000:]}"

    async def wait_for(self, condition: Any) -> None:
        """Until it holds, while this runs."""
        async with asyncio.timeout(GIVE_UP):
            while not condition():
                assert self.is_running, self.describe()
                await asyncio.sleep(0.001)

    async def end(self) -> int:
        """Its exit code, when it ends."""
        async with asyncio.timeout(GIVE_UP):
            while (code := self.process.poll()) is None:
                await asyncio.sleep(0.002)
        return code

    async def kill_workers(self, count: int, chance: random.Random) -> None:
        """So many times one that there is, whatever it does just then; some in a second."""
        killed: set[int] = set()
        while len(killed) < count:
            await asyncio.sleep(chance.random() * 0.8)
            assert self.is_running, self.describe()
            if alive := [pid for pid in self.children() if pid not in killed]:
                killed.add(pid := chance.choice(alive))
                os.kill(pid, signal.SIGKILL)

    def children(self) -> list[int]:
        """The processes of its workers."""
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    @property
    def figures(self) -> dict[str, Any]:
        """What it reports at the end. Raises AssertionError when it did not."""
        text = (self.folder / "figures").read_text()
        assert text, f"no figures; {self.describe()}"
        figures: dict[str, Any] = json.loads(text)
        return figures


async def kill_workers(
    kills: int,
    workers: int,
    chance: random.Random,
    folder: Path,
    arguments: Sequence[object],
    ready: Callable[[Command], Awaitable[None]] | None = None,
) -> None:
    """So many times one of so many. Each run with these arguments has as many deaths as a supervisor bears whose workers never
    grow old, from when it is `ready`, and ends in good order, with counts that are exact."""
    while kills:
        deaths = min(kills, workers * MOST_EARLY_CRASHES - 1)
        with run(folder, *arguments, "--workers", workers) as command:
            await command.wait_for(lambda command=command: "listening on" in command.said)
            if ready is not None:
                await ready(command)
            await command.kill_workers(deaths, chance)
            command.process.send_signal(signal.SIGTERM)
            assert await command.end() == 0, command.describe()
            assert command.figures["crashes"] == command.said.count("ended after") <= deaths  # the last ones may seem to stop
            counts = command.figures["messages"]
            assert counts["read"] == sum(counts[end] for end in ENDS), counts
        kills -= deaths


@contextmanager
def run(folder: Path, *arguments: object, under: Sequence[object] = ()) -> Iterator[Command]:
    """`mqcore run` with these, which is killed if it is still there in the end."""
    with (folder / "said").open("wb") as said, (folder / "figures").open("wb") as figures:
        process = start("run", "--json", *arguments, under=[str(one) for one in under], stdout=figures, stderr=said)
    with process:
        try:
            yield Command(process, folder)
        finally:
            process.kill()


class Faults:
    """What is to go wrong with the files of a run `under` this."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faults"
        self.reached = Path(f"{self._file}.reached")
        self.under = ("env", f"LD_PRELOAD={preloaded()}", f"FAULTS={self._file}")

    def begin(self, call: str, number: int) -> None:
        """`write` or `sync` fails with this error; 0: does not return."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{call} {number}")
        new.replace(self._file)

    def end(self) -> None:
        self._file.unlink()
