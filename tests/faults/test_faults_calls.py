"""A short form of calls.py, which runs for an hour by night."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_message_ends_once():
    command = [Path(__file__).with_name("calls.py"), "--calls", "500000", "--minutes", "0.05", "--rounds", "2"]
    ran = subprocess.run([sys.executable, "-X", "dev", *command], capture_output=True, text=True, timeout=600)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
