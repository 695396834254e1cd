"""Stalls: the longest turn of the loop while much is called that is all due at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from comparing import row_of
from stalling import WAYS, longest_turn, on_uvloop


@pytest.mark.parametrize("phase", WAYS)
def test_stalls(benchmark: Any, loop: Any, report: Callable[..., None], phase: str, *, short: bool) -> None:
    """With callbacks of 20 us, in each phase of a tick. uvloop calls all that are ready in one turn."""
    count = 20_000 if short else 40_000
    turns: dict[str, list[float]] = {"uvloop, call_soon": [], "mqcore": []}

    def measure() -> None:
        turns["uvloop, call_soon"].append(longest_turn(loop, on_uvloop, count))
        turns["mqcore"].append(longest_turn(loop, WAYS[phase], count))

    benchmark.group = "stalls"
    benchmark.pedantic(measure, rounds=2 if short else 3)
    report(row_of("stalls", f"{phase} phase", turns, unit="ms"))
