"""The command: mails of 1,000 bytes from an mbox to a Maildir and to null:, through 0 and 10 plugins that pass them on.

Every figure is of whole processes. A mail's cost is that of a run, without what a run costs that finds the mbox empty, for
each mail; so it does not depend on how many they are. What the empty run costs is the start of the command.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest
from comparing import row_of
from moving import Moving, write_mbox, write_plugins

DISK = Path(tempfile.gettempdir())
MEMORY = Path("/dev/shm")  # a file system that is in memory, on every Linux
WAYS = ("floor", "mqcore", "standard library")

Folder = Callable[..., Path]
Figures = dict[str, list[float]]


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


def rounds_of(benchmark: Any, measure: Callable[[str], float], ways: Iterable[str], rounds: int) -> Figures:
    """What `measure` finds for each way, in rounds that alternate."""
    figures: Figures = {way: [] for way in ways}

    def measure_all() -> None:
        for way, each in figures.items():
            each.append(measure(way))

    benchmark.pedantic(measure_all, rounds=rounds)
    return figures


def time_of(moving: Moving, way: str) -> int:
    """The ns of a run. What earlier ones left to be written is brought to the disk before."""
    os.sync()
    start = perf_counter_ns()
    moving.run(way)
    return perf_counter_ns() - start


def mails_in(maildir: str) -> list[bytes]:
    """The mails of a Maildir, in an order of their own."""
    return sorted(path.read_bytes() for path in Path(maildir, "new").iterdir())


@pytest.mark.parametrize("count", [0, 600])
def test_all_do_the_same(new_folder: Folder, count: int) -> None:
    """What is compared ends with the same mails."""
    folder = new_folder()
    moving = Moving(write_mbox(folder / "mbox", count), write_plugins(folder / "plugins", 1), folder)
    mails = mails_in(moving.run("mqcore"))
    assert len(mails) == count
    for way in WAYS:
        assert mails_in(moving.run(way)) == mails


@pytest.mark.parametrize("plugins", [0, 10])
@pytest.mark.parametrize(
    ("sink", "place", "count", "short_count"),
    [
        ("null:", None, 100_000, 40_000),
        ("Maildir", DISK, 3_000, 1_000),
        ("Maildir in memory", MEMORY, 20_000, 10_000),
    ],
)
def test_move(
    new_folder: Folder,
    benchmark: Any,
    report: Callable[..., None],
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
    folder, maildirs = new_folder(), place and new_folder(place)
    loaded = write_plugins(folder / "plugins", plugins)
    empty = Moving(write_mbox(folder / "empty", 0), loaded, maildirs)
    full = Moving(write_mbox(folder / "full", count), loaded, maildirs)

    def measure(way: str) -> float:
        return (time_of(full, way) - time_of(empty, way)) / count

    figures = rounds_of(benchmark, measure, WAYS, 3 if short else 7)
    report(row_of("the command", f"mbox to {sink}, {plugins} plugins", figures))


@pytest.mark.parametrize("plugins", [0, 10])
def test_start(new_folder: Folder, benchmark: Any, report: Callable[..., None], plugins: int, *, short: bool) -> None:
    """A run with nothing to do, from an empty mbox to null:."""
    folder = new_folder()
    moving = Moving(write_mbox(folder / "mbox", 0), write_plugins(folder / "plugins", plugins), None)
    figures = rounds_of(benchmark, lambda way: time_of(moving, way) / 1e6, WAYS, 5 if short else 15)
    report(row_of("start of the command", f"start, {plugins} plugins", figures, unit="ms"))


def test_peak(new_folder: Folder, benchmark: Any, report: Callable[..., None], *, short: bool) -> None:
    """The peak of resident memory, interpreter included: the same however many mails there are."""
    folder = new_folder()
    plugins = write_plugins(folder / "plugins", 10)
    counts = {"10k messages": 10_000, "mqcore": 100_000}
    movings = {
        name: Moving(write_mbox(folder / name, count), plugins, new_folder(MEMORY)) for name, count in counts.items()
    }
    figures = rounds_of(benchmark, lambda name: movings[name].peak(), movings, 2 if short else 5)
    report(row_of("memory of the command", "100k messages, beside 10k", figures, unit="B"))
