"""Machines that carry mail together, one of which is killed, and one is cut off; `machines.py` does it more often."""

from __future__ import annotations

import asyncio

import pytest
from networks import why_none

pytest.importorskip("pika", reason="pika is not installed (pip: pika)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := why_none()), reason=str(why))]


def test_nothing_is_lost_and_doubles_are_bounded():
    from machines import measure

    figures = asyncio.run(measure(brokers=1, faults=2, seed=1))
    assert figures.kept and figures.faults == 2, figures
