"""Hold and give back: many messages held at once, then all given back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from comparing import row_of
from holding import (
    WAYS,
    ByCoroutine,
    ByDict,
    ByDictAndThread,
    ByDictAndTimer,
    ByFloor,
    ByHold,
    ByMqcore,
    ByTask,
    ByThread,
    ByTimer,
    Way,
)
from memory import bytes_per_message
from subjects import messages

import mqcore

Against = Callable[..., None]
GROUP = "hold and give back"
# Each round starts with no garbage: else one contender pays for another's.
SETTLED = {"before": gc.collect}


class Mail(mqcore.Message):
    """A message as users have it: a subclass in Python, with an attribute."""

    def __init__(self, sender: str) -> None:
        """From somebody."""
        self.sender = sender


@contextmanager
def ways(loop: Any, taken: list[Any], chosen: dict[str, type[Way]]) -> Iterator[dict[str, Callable[[], None]]]:
    """The cycles of these ways."""
    with ExitStack() as stack:
        made = {}
        for name, way in chosen.items():
            opened = way(loop, taken)
            stack.callback(opened.close)
            made[name] = opened.cycle
        yield made


# For where others take too long: a million tasks take 10 s a round and more than 1 GB.
MILLION = {"dict + callback": ByDict, "mqcore": ByMqcore}


@pytest.mark.parametrize("collects", [True, False], ids=["gc on", "gc off"])
@pytest.mark.parametrize(
    ("name", "count", "rounds", "chosen"),
    [
        ("10k", 10_000, 20, WAYS),
        pytest.param("100k", 100_000, 7, WAYS, marks=pytest.mark.large),
        pytest.param("1M", 1_000_000, 5, MILLION, marks=pytest.mark.large),
    ],
)
def test_held(
    loop: Any, against: Against, name: str, count: int, rounds: int, chosen: dict[str, type[Way]], *, collects: bool
) -> None:
    """That many held at once."""
    with ways(loop, messages(count), {"floor": ByFloor, **chosen}) as contenders:
        if not collects:
            gc.disable()
        case = f"{name} held" if collects else f"{name} held, gc off"
        try:
            against(GROUP, case, contenders, rounds=rounds, count=count, **SETTLED)
        finally:
            gc.enable()


def test_subclass_held(loop: Any, against: Against) -> None:
    """Messages of a subclass in Python, each with an attribute."""
    count = 100_000
    taken = [Mail(f"{number}@example.org") for number in range(count)]
    with ways(loop, taken, {"floor": ByFloor, **MILLION}) as contenders:
        against(GROUP, "100k held, Python subclass", contenders, rounds=7, count=count, **SETTLED)


@pytest.mark.parametrize(
    ("case", "base", "peer", "way"),
    [
        ("by Hold", "dict + callback", ByDict, ByHold),
        ("by a timer", "dict + call_later", ByDictAndTimer, ByTimer),
        ("by another thread", "dict + call_soon_threadsafe", ByDictAndThread, ByThread),
        ("by a coroutine hook", "task awaiting a future", ByTask, ByCoroutine),
    ],
)
def test_given_back(loop: Any, against: Against, case: str, base: str, peer: type[Way], way: type[Way]) -> None:
    """Other ways of giving back."""
    count = 10_000
    with ways(loop, messages(count), {base: peer, "mqcore": way}) as contenders:
        against(GROUP, f"10k held, {case}", contenders, rounds=15, count=count, **SETTLED)


@pytest.mark.parametrize(
    ("name", "count", "chosen"),
    [("10k", 10_000, WAYS), ("100k", 100_000, WAYS), pytest.param("1M", 1_000_000, MILLION, marks=pytest.mark.large)],
)
def test_memory(
    benchmark: Any, report: Callable[..., None], name: str, count: int, chosen: dict[str, type[Way]], *, short: bool
) -> None:
    """Resident memory for each held message, in a fresh process for each figure. Collections of garbage change nothing."""
    figures: dict[str, dict[str, list[float]]] = {}

    def measure() -> None:
        for way in chosen:
            for part, size in bytes_per_message(way, count).items():
                figures.setdefault(part, {}).setdefault(way, []).append(size)

    benchmark.pedantic(measure, rounds=2 if short else 3)
    for part, sizes in figures.items():
        report(row_of("memory", f"{name} held, {part}", sizes, unit="B"))
