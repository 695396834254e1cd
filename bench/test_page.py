"""The page: made from what two runs wrote, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comparing import Row
from page import main


def result(python: str, *rows: Row) -> dict[str, Any]:
    """What a run writes, as far as the page has it."""
    return {
        "rows": [row.as_json() for row in rows],
        "short": False,
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-11-24T10:52:05.921501+00:00",
        "machine_info": {
            "python_version": python,
            "cpu": {"brand_raw": "A CPU", "count": 2},
            "system": "Linux",
            "release": "6.1",
            "machine": "x86_64",
            "versions": {"mqcore": "0.1.0", "uvloop": "0.23.0", "libuv": "1.52.1"},
            "file_system": "ext4",
        },
    }


def test_page(tmp_path: Path) -> None:
    """Rows that only one run has, costs of nothing, and goals that are broken are all on it."""
    run = Row("dispatch", "run", "floor", 40.0, 60.0, 1.5, 0.02, {"pluggy": 20.0}, "1.1 x floor", False)
    free = Row("memory", "held", "dict", 117.0, 0.0, 0.0, 0.0, unit="B")
    grown = Row("growth", "100 held", "10 held", 50.0, 50.0, 1.0, 0.01, at=100.0)
    (tmp_path / "one").write_text(json.dumps(result("3.11.9", run, free, grown)))
    (tmp_path / "two").write_text(json.dumps(result("3.13.9", run, grown)))
    made = []
    for folder in (tmp_path / "docs", tmp_path / "again"):
        main(str(tmp_path / "one"), str(tmp_path / "two"), str(folder))
        made.append({path.name: path.read_bytes() for path in folder.rglob("*.*")})
    assert made[0] == made[1]
    assert made[0].keys() == {"performance.md", "dispatch.svg", "memory.svg", "growth.svg"}
    page = made[0]["performance.md"].decode()
    for python in ("3.11.9", "3.13.9"):
        assert f"| run | {python} | floor | 40 | 60 | 16,666,667 | 1.50 | 2.0% | 1.1 x floor | **no** |" in page
    assert b">pluggy</text>" in made[0]["dispatch.svg"]
