"""The arrows between the folders: who imports whom, as CONTRIBUTING.md has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MQCORE = Path(__file__).parent.parent / "mqcore"

# What each may import from beside itself. `errors`, `hooks`, `stats` and `verdicts` are words that all share.
ALLOWED = {
    "loop": set(),
    "core": {"loop"},
    "native": {"loop", "core"},
    "plugins": {"loop", "core", "native"},
    "smtp": set(),
    "amqp": set(),
    "milter": set(),
    "mail": {"loop", "core", "native", "plugins", "smtp", "amqp", "milter"},
}
SHARED = {"errors", "hooks", "stats", "verdicts"}
ROOMS = {path.name for path in MQCORE.iterdir() if (path / "__init__.py").exists()}
NOT_CORE = {"__init__", "__main__", "prometheus"}  # what stands at the top for users alone


def sources(room: str) -> list[Path]:
    files = MQCORE.glob("*.p*") if room == "core" else (MQCORE / room).rglob("*.p*")
    return [path for path in files if path.suffix in (".py", ".pyx", ".pxd") and path.stem not in NOT_CORE]


def imported(path: Path) -> set[str]:
    """The rooms, and modules of the core, that a file imports."""
    found = set()
    for dots, name in re.findall(r"^ *from (\.+)([\w.]*) c?import", path.read_text(), re.MULTILINE):
        above = path.parents[len(dots) - 1]
        if above == MQCORE and name:
            found.add(name.partition(".")[0])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_run_one_way(room: str) -> None:
    for path in sources(room):
        for name in imported(path) - SHARED - {room}:
            other = name if name in ROOMS else "core"
            assert other == room or other in ALLOWED[room], f"{path.relative_to(MQCORE)} imports {name}"
