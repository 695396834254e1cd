"""Rule 21: no function of the core can be left by an exception that nobody sees. In Cython that is a call of
`__Pyx_WriteUnraisable` in the generated C."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("", "loop", "native")  # the core; the mail side is above it
SOURCES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / "mqcore" / room).glob("_*.pyx"))


def directives() -> dict[str, object]:
    """Those of the release build, as setup.py has them."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "DIRECTIVES"
    )
    return dict(eval(compile(ast.Expression(value), "setup.py", "eval"), {"DEBUG": False}))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of mqcore, and the C of each module of the core beside them."""
    folder = tmp_path_factory.mktemp("generated")
    shutil.copytree(ROOT / "mqcore", folder / "mqcore", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    options = [option for name, value in directives().items() for option in ("-X", f"{name}={value}")]
    command = [sys.executable, "-m", "cython", *options, *map(str, SOURCES)]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_no_exception_is_only_written(generated: Path, source: Path) -> None:
    """The functions that can be left by one: their names are in the calls."""
    code = (generated / source.with_suffix(".c")).read_text()
    left = re.findall(r'__Pyx_WriteUnraisable\("([^"]+)"', code)
    assert left == []


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_no_list_comprehension_of_new_objects(generated: Path, source: Path) -> None:
    """Cython's code for these drops an item twice when the list cannot grow for want of memory (as of 3.2)."""
    code = (generated / source.with_suffix(".c")).read_text()
    assert re.findall(r"AppendAndDecref\(.*__PYX_ERR\(0, (\d+)", code) == []


def test_the_core_is_all_there() -> None:
    assert {path.name for path in SOURCES} >= {"_dispatch.pyx", "_message.pyx", "_reactor.pyx", "_slots.pyx"}
