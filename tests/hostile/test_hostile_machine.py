"""Rule 21: whatever users' objects do, and whenever, the books stay in order. The short form of machine.py."""

from __future__ import annotations

import hostile_tools
import pytest
from effort import THOROUGH, examples


@pytest.mark.parametrize("owner", ["uvloop", "pyuv"])
def test_operations_at_random(owner: str) -> None:
    seconds = 20 if THOROUGH else 3
    out = hostile_tools.run("machine", "--owner", owner, "--seed", 1, "--seconds", seconds, dev=False, timeout=240)
    assert out.endswith("nothing found\n")


@pytest.mark.parametrize("owner", ["uvloop", "pyuv"])
def test_state_machine(owner: str) -> None:
    assert hostile_tools.run("machine_hypothesis", owner, examples(60), dev=False, timeout=240).endswith("nothing found\n")
