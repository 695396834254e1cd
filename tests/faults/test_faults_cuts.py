"""A network that is cut between a run and its broker, in each way; `cuts.py` does it more often."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from networks import why_none

pytest.importorskip("pika", reason="pika is not installed (pip: pika)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := why_none()), reason=str(why))]


def test_nothing_is_lost_and_doubles_are_bounded():
    from cuts import measure

    cuts = measure("amqp", cuts=3, seed=1)
    assert cuts.kept and cuts.figures.faults == 3, cuts


def test_a_cable_is_gone_when_it_is_left():
    from cuts import Cable

    with contextlib.ExitStack() as undo:
        for _ in range(2):
            with Cable() as cable:
                # A namespace lives as long as what is in it.
                inside = undo.enter_context(subprocess.Popen([*cable.inside, "sleep", "60"]))
                undo.callback(inside.kill)
