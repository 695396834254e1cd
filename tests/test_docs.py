"""What the documentation says of the code, and where its links lead; its blocks of code are in test_docs_blocks.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
MQCORE = DOCS.parent / "mqcore"
PAGES = [*sorted(DOCS.parent.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def test_the_moves_between_states_in_the_docs_are_those_of_the_code() -> None:
    code = (MQCORE / "_message.pxd").read_text()
    numbered = re.findall(r"^    ([A-Z_]+) = (\d)  ", code.partition("State:")[2], re.MULTILINE)[:6]
    states = {int(number): name for name, number in numbered}
    rows = re.findall(r"^        /\* (\w+) +\*/ (.*),$", code, re.MULTILINE)
    assert [name for name, _ in rows] == [states[number] for number in range(6)]
    moves = {(name, states[int(to)]) for name, tos in rows for to in re.findall(r"1 << (\d)", tos)}
    page = (DOCS / "architecture.md").read_text()
    assert set(re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \|", page, re.MULTILINE)) == moves
    picture = (DOCS / "pictures" / "states.svg").read_text()
    assert set(re.findall(r'id="([A-Z_]+)-([A-Z_]+)"', picture)) == moves
    assert set(re.findall(r">([A-Z_]+)</text>", picture)) == set(states.values())
    table = re.findall(r"^    ([A-Z_]+) .* -> (.*)$", (MQCORE / "_message.pyx").read_text(), re.MULTILINE)
    assert {(name, to) for name, tos in table for to in re.findall(r"[A-Z_]{4,}", tos)} == moves


def test_the_phases_of_a_tick_in_the_docs_are_those_of_the_code() -> None:
    code = (MQCORE / "loop" / "_reactor.pxd").read_text()
    phases = re.findall(r"^    ([A-Z]+)_PHASE ", code, re.MULTILINE)
    picture = (DOCS / "pictures" / "tick.svg").read_text()
    places = re.findall(r'id="([A-Z]+)" x="\d+" y="(\d+)"', picture)
    assert [name for name, y in sorted(places, key=lambda place: int(place[1]))] == phases
    assert len(phases) == 8


def test_the_parts_in_the_picture_are_the_folders_of_the_code() -> None:
    picture = (DOCS / "pictures" / "architecture.svg").read_text()
    folders = {path.parent.name for path in MQCORE.glob("*/__init__.py")}
    assert set(re.findall(r'id="([a-z]+)"', picture)) - {"tip"} == folders - {"testing"}


def test_what_the_architecture_page_names_is_there() -> None:
    sources = [path.read_text() for path in MQCORE.rglob("*.p*") if path.suffix in (".py", ".pyx", ".pxd")]
    words = set(re.findall(r"\w+", "".join(sources)))
    page = re.sub(r"^```.*?^```", "", (DOCS / "architecture.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {word for text in re.findall(r"`([^`]+)`", page) for word in re.findall(r"[A-Za-z_]\w*", text)}
    cpython = {"PYTHON_GIL", "PyUnstable_TryIncRef"}
    assert named - words <= {"tests", "scripts", "dev", "reference", "await", "bench", "threads"} | cpython


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS.parent)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", link):
            file, _, anchor = link.partition("#")
            target = (page.parent / file) if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


@pytest.mark.slow
def test_cython_example_is_built_and_runs(tmp_path: Path) -> None:
    text = (DOCS / "cython.md").read_text()
    source, setup, use, output, _ = re.findall(r"^```(?:cython|python|text)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "counting.pyx").write_text(source)
    (tmp_path / "setup.py").write_text(setup)
    (tmp_path / "use.py").write_text(use)
    build = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    subprocess.run(build, cwd=tmp_path, capture_output=True, timeout=300, check=True)
    # PYTHONSAFEPATH would hide what was just built.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    script = (sys.executable, "use.py")
    result = subprocess.run(
        script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr) == (output, "")


def test_the_rules_that_the_code_cites_are_in_the_docs() -> None:
    rules = (DOCS / "control.md").read_text().partition("\n## The rules\n")[2]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", rules, re.MULTILINE)]
    assert numbers == list(range(1, 23))
    cited = set()
    for folder in (DOCS.parent / "mqcore", DOCS.parent / "tests"):
        for path in [*folder.rglob("*.py*"), *folder.rglob("*.px*"), *folder.rglob("*.h")]:
            if path.suffix != ".pyc":
                for several in re.findall(r"\b[Rr]ules? (\d+(?:(?:, | and |, and )\d+)*)", path.read_text()):
                    cited.update(int(number) for number in re.findall(r"\d+", several))
    assert {1, 8, 12, 16} <= cited <= set(numbers)
