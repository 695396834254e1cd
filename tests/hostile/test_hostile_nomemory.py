"""Rule 21: the n-th allocation fails, for every n of a small scenario, and the books are in order. See no_memory.py."""

from __future__ import annotations

import importlib.util

import hostile_tools
import no_memory
import pytest

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
    assert hostile_tools.run("no_memory", owner, name, dev=False, timeout=300).endswith(" allocations\n")
