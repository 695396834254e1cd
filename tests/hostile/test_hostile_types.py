"""Rule 22: no constructor is a trap, of any type that the compiled modules have. Each is attacked in a process of its own."""

from __future__ import annotations

import attack_types
import hostile_tools
import pytest

TYPES = sorted(attack_types.extension_types())


def test_all_types_are_found() -> None:
    known = {"mqcore._message.Message", "mqcore._context.Context", "mqcore._context.Hold", "mqcore._dispatcher.Dispatcher"}
    assert known <= set(TYPES)
    assert len(TYPES) > 15


@pytest.mark.parametrize("owner", ["uvloop", pytest.param("pyuv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TYPES)
def test_attacked(name: str, owner: str) -> None:
    hostile_tools.run("attack_types", owner, name, timeout=240)
