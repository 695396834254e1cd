"""A network that is cut between a run and its broker, in each way; `cuts.py` does it more often."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

pytest.importorskip("pika", reason="pika is not installed (pip: pika)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces are Linux's, and root's"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not installed (Debian: apt-get install iproute2)"),
]


def test_nothing_is_lost_and_doubles_are_bounded():
    from cuts import measure

    cuts = measure("amqp", cuts=3, seed=1)
    assert cuts.kept and cuts.figures.faults == 3, cuts
