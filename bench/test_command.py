"""The command: mails of 1,000 bytes from an mbox to a Maildir and to null:, through 0 and 10 plugins that pass them on.

A row's cost is the time of a process, from its start to its end, for each mail that it moved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import row_of
from movers import WAYS
from moving import Moving, write_mbox, write_plugins

DISK = Path(tempfile.gettempdir())
MEMORY = Path("/dev/shm")  # a file system that is in memory, on every Linux

Folder = Callable[..., Path]


@pytest.fixture
def new_folder() -> Iterator[Folder]:
    """`new_folder(inside=None)`: a new one, which is deleted in the end; pytest would keep thousands of mails."""
    made: list[str] = []

    def make(inside: Path | None = None) -> Path:
        made.append(tempfile.mkdtemp(prefix="mqcore-bench-", dir=inside))
        return Path(made[-1])

    yield make
    for folder in made:
        shutil.rmtree(folder)


def mails_in(maildir: str) -> list[bytes]:
    """The mails of a Maildir, in an order of their own."""
    return sorted(path.read_bytes() for path in Path(maildir, "new").iterdir())


def test_all_do_the_same(new_folder: Folder) -> None:
    """What is compared ends with the same mails."""
    folder = new_folder()
    moving = Moving(write_mbox(folder / "mbox", 600), write_plugins(folder / "plugins", 1), folder)
    mails = mails_in(moving.run("mqcore"))
    assert len(mails) == 600
    for way in WAYS:
        assert mails_in(moving.run(way)) == mails


@pytest.mark.parametrize("plugins", [0, 10])
@pytest.mark.parametrize(
    ("sink", "place", "count", "short_count"),
    [
        ("null:", None, 100_000, 40_000),
        ("Maildir", DISK, 3_000, 500),
        ("Maildir in memory", MEMORY, 20_000, 10_000),
    ],
)
def test_move(
    new_folder: Folder,
    against: Callable[..., None],
    sink: str,
    place: Path | None,
    count: int,
    short_count: int,
    plugins: int,
    *,
    short: bool,
) -> None:
    """In memory, where the disk costs nothing, is what mqcore and the others cost themselves."""
    count = short_count if short else count
    folder = new_folder()
    mbox, loaded = write_mbox(folder / "mbox", count), write_plugins(folder / "plugins", plugins)
    moving = Moving(mbox, loaded, place and new_folder(place))
    contenders = {way: lambda way=way: moving.run(way) for way in ("floor", "mqcore", "standard library")}
    # Before each run, what the one before it left to be written is brought to the disk.
    case = f"mbox to {sink}, {plugins} plugins"
    against("the command", case, contenders, rounds=7, count=count, before=os.sync)


def test_peak(new_folder: Folder, benchmark: Any, report: Callable[..., None], *, short: bool) -> None:
    """The peak of resident memory, interpreter included: the same however many mails there are."""
    folder = new_folder()
    plugins = write_plugins(folder / "plugins", 10)
    ways = {
        name: Moving(write_mbox(folder / name, count), plugins, new_folder(MEMORY))
        for name, count in {"10k messages": 10_000, "mqcore": 100_000}.items()
    }
    figures: dict[str, list[float]] = {name: [] for name in ways}

    def measure() -> None:
        for name, way in ways.items():
            figures[name].append(way.peak())

    benchmark.pedantic(measure, rounds=2 if short else 3)
    report(row_of("memory of the command", "100k messages, beside 10k", figures, unit="B"))
