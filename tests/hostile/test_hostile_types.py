"""Rule 22: no constructor is a trap, of any type that the compiled modules have. Each is attacked in a process of its own."""

from __future__ import annotations

import attack_types
import hostile_tools
import pytest

TYPES = sorted(attack_types.extension_types())


def test_all_types_are_found() -> None:
    names = ("message.Message", "context.Context", "context.Hold", "dispatch.Dispatcher")
    assert {f"mqcore._{name}" for name in names} <= set(TYPES)
    assert len(TYPES) > 15


@pytest.mark.parametrize("owner", ["uvloop", "pyuv"])
@pytest.mark.parametrize("name", TYPES)
def test_attacked(name: str, owner: str) -> None:
    hostile_tools.run("attack_types", owner, name, timeout=240)
