"""kill -9 for each pair of a source and a sink, a few times; `kills.py` does it a hundred times."""

from __future__ import annotations

import pytest
from kills import PAIRS, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_nothing_is_lost_and_doubles_are_bounded(pair):
    figures = measure(pair, kills=3, seed=1)
    assert figures.kept and figures.kills == 3, figures


@pytest.mark.parametrize("sink", ["maildir", "smtp"])
def test_workers_that_are_killed(sink):
    figures = measure(("smtp", sink), kills=10, seed=1, workers=3)
    assert figures.kept and figures.kills == 10, figures
