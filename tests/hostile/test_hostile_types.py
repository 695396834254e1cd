"""Rule 22: no constructor is a trap, of any type that the compiled modules have. One process attacks those of one module."""

from __future__ import annotations

import itertools

import attack_types
import hostile_tools
import pytest

TYPES = sorted(attack_types.extension_types())
MODULES = {module: list(names) for module, names in itertools.groupby(TYPES, lambda name: name.rpartition(".")[0])}


def test_all_types_are_found() -> None:
    known = {"mqcore._message.Message", "mqcore._context.Context", "mqcore._context.Hold", "mqcore._dispatcher.Dispatcher"}
    assert known <= set(TYPES)
    assert len(TYPES) > 15


@pytest.mark.parametrize("owner", ["uvloop", pytest.param("pyuv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("module", MODULES)
def test_attacked(module: str, owner: str) -> None:
    hostile_tools.run("attack_types", owner, *MODULES[module], timeout=240)
