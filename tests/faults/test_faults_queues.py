"""kill -9 of a broker, and of the run that reads from it, a few times; `queues.py` does it more often."""

from __future__ import annotations

import pytest

pytest.importorskip("pika", reason="pika is not installed (pip: pika)")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sink", ["amqp", "maildir"])
def test_nothing_is_lost_and_doubles_are_bounded(sink):
    from queues import measure

    figures = measure(sink, kills=3, seed=1)
    assert figures.kept and figures.faults == 3, figures


def test_workers_that_are_killed():
    from queues import measure

    figures = measure("amqp", kills=10, seed=1, workers=3)
    assert figures.kept and figures.faults == 10, figures
