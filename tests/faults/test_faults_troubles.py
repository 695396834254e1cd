"""What happens to a RabbitMQ and its queues, one thing at a time; what takes longest, only `troubles.py` does."""

from __future__ import annotations

import pytest

pytest.importorskip("pika", reason="pika is not installed (pip: pika)")
pytestmark = pytest.mark.slow

from troubles import CONFIG, TROUBLES, measure


@pytest.fixture(scope="module")
def broker():
    from broker import Broker

    with Broker(config=CONFIG) as broker:
        yield broker


@pytest.mark.parametrize("name", [name for name in TROUBLES if name != "remade"])
def test_nothing_is_lost_and_doubles_are_bounded(broker, name):
    figures, kept = measure(broker, name)
    assert kept, figures
