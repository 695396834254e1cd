"""Rules 21 and 22: programs that broke the core once give the right value now. Each runs in a process of its own."""

from __future__ import annotations

import case_programs
import hostile_tools
import pytest

CASES = [
    pytest.param(name, owner, marks=[pytest.mark.slow] if owner == "pyuv" else [])
    for name in case_programs.CASES
    for owner in ("uvloop", "pyuv")
    if owner == "uvloop" or name not in case_programs.UVLOOP_ONLY
]


# These look at the clock, so nothing slows them down that is there for tests only.
TIMED = {"holds_with_timers_given_back_by_another_thread", "a_slow_reload_in_another_thread"}


@pytest.mark.parametrize(("name", "owner"), CASES)
def test_case(name: str, owner: str) -> None:
    assert hostile_tools.run("case_programs", name, owner, dev=name not in TIMED).endswith("passed\n")
