"""Machines that carry mail together, one of which is killed, and one is cut off; `machines.py` does it more often."""

from __future__ import annotations

import asyncio
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
    from machines import measure

    figures = asyncio.run(measure(brokers=1, faults=2, seed=1))
    assert figures.kept and figures.faults == 2, figures
