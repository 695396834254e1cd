"""Rule 21: the n-th allocation fails, for every n of a small scenario, and the books are in order. See no_memory.py.

By day it is each third n, another third for each scenario.
"""

from __future__ import annotations

import importlib.util

import hostile_tools
import no_memory
import pytest
from effort import THOROUGH

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None,
    reason="this Python has no _testcapi, which makes allocations fail: it is part of CPython's own tests",
)
CASES = [
    pytest.param(name, owner, marks=[pytest.mark.slow] if owner == "pyuv" else [])
    for name, scenario in no_memory.SCENARIOS.items()
    for owner in ("uvloop", "pyuv")
    if owner == "uvloop" or not scenario.only_uvloop
]


@pytest.mark.parametrize(("name", "owner"), CASES)
def test_nth_allocation_fails(name: str, owner: str) -> None:
    every, first = (1, 1) if THOROUGH else (3, 1 + list(no_memory.SCENARIOS).index(name) % 3)
    assert hostile_tools.run("no_memory", owner, name, every, first, dev=False, timeout=300).endswith(" allocations\n")
