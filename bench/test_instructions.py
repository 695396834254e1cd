"""Instructions of the hottest paths, counted by valgrind: what the clock is too noisy to guard."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from comparing import row_of
from instructions import count_all


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """All paths, counted in one process under valgrind."""
    return count_all(tmp_path_factory.mktemp("callgrind"))


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind, which counts instructions")
@pytest.mark.parametrize(
    "case",
    [
        *("run_many, 10 plugins", "run, 1 plugin", "hold and give back", "start and stop a timer"),
        *("run_many, 10 plugins, watched", "hold and give back, watched"),
        *("ping-pong", "100 sockets at once"),
        *("run_many, 10 native plugins", "hold, give back from a native timer"),
    ],
)
def test_instructions(counts: dict[str, dict[str, float]], report: Callable[..., None], case: str) -> None:
    """One path."""
    # The same each time: one round is as good as many.
    figures = {name: [count, count] for name, count in counts[case].items()}
    report(row_of("instructions", f"{case}, instructions", figures, unit="instr."))
