"""A network that is cut between a run and its broker, in each way; `cuts.py` does it more often."""

from __future__ import annotations

import pytest
from networks import why_none

pytest.importorskip("pika", reason="pika is not installed (pip: pika)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := why_none()), reason=str(why))]


def test_nothing_is_lost_and_doubles_are_bounded():
    from cuts import measure

    cuts = measure("amqp", cuts=3, seed=1)
    assert cuts.kept and cuts.figures.faults == 3, cuts
