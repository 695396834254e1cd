"""Storing in a Maildir: mails of 1 KB, in groups of 16, as many as a server with 16 busy clients has to store at once, and
alone.

The processor time of the process, in user code and in the system, of each program that stores them: the bare calls of the
system, mqcore's sink, and the standard library. In memory the calls cost little, and only the programs differ; on a disk,
nearly all is the file system's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import storing
from building import build_program
from comparing import row_of
from moving import environment
from test_command import DISK, MEMORY

SIZE = 1024
WAYS = ("bare system calls", "mqcore", "standard library")


@pytest.mark.parametrize(
    ("where", "place", "group", "count"),
    [
        *(("in memory", MEMORY, group, 3_200) for group in (16, 1)),
        ("on disk", DISK, 16, 320),
        ("on disk", DISK, 1, 40),  # two syncs each
    ],
)
def test_store(
    benchmark: Any, report: Callable[..., None], where: str, place: Path, group: int, count: int, *, short: bool
) -> None:
    floor = build_program("maildir_floor")
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    folder = Path(tempfile.mkdtemp(prefix="mqcore-bench-", dir=place))

    def measure() -> None:
        for way, each in taken.items():
            program: list[object] = [floor] if way == WAYS[0] else [sys.executable, storing.__file__, way]
            os.sync()
            command = [*program, folder / f"{way}-{len(each)}", count, group, SIZE]
            done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, env=environment())
            each.append(sum(map(float, done.stdout.split())))

    rounds = 3 if short else 9
    try:
        benchmark.pedantic(measure, rounds=rounds, warmup_rounds=1)
    finally:
        shutil.rmtree(folder)
    case = f"a Maildir {where}, {f'{group} mails at a time' if group > 1 else 'one mail at a time'}, processor time"
    report(row_of("storing in a Maildir", case, {way: each[-rounds:] for way, each in taken.items()}))
