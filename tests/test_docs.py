"""The examples in the documentation do what it says they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

import mqcore

DOCS = Path(__file__).resolve().parent.parent / "docs"
MQCORE = DOCS.parent / "mqcore"
PAGES = [*sorted(DOCS.parent.glob("*.md")), *sorted(DOCS.glob("*.md"))]
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(match[1], match[2], id=f"{name}:{text[: match.start()].count(chr(10)) + 2}")
    for name in ("control.md", "architecture.md", "gateway.md", "rabbitmq.md")
    for text in [(DOCS / name).read_text()]
    for match in EXAMPLE.finditer(text)
]


@pytest.mark.parametrize(("code", "output"), [example for example in EXAMPLES if example.values[1]])
def test_scripts_print_what_stands_below_them(code: str, output: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, output)


@pytest.mark.parametrize(("code", "output"), [example for example in EXAMPLES if not example.values[1]])
def test_plugins_load_and_take_messages(code: str, output: None, tmp_path: Path) -> None:
    (tmp_path / "10-example.py").write_text(code)

    async def main() -> list[mqcore.Outcome]:
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            hooks = [dispatcher.hook(name) for plugin in plugins for name in plugin.hooks]
            return [await hook(mqcore.Message()) for hook in hooks]

    (outcome,) = uvloop.run(main())
    assert outcome in (mqcore.CONTINUE, mqcore.COMPLETE)


OTHERS = [
    pytest.param(code, id=f"{path.name}:{number}")
    for path in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    if path.name not in ("control.md", "architecture.md", "cython.md")
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE), 1)
]


@pytest.mark.parametrize("code", OTHERS)
def test_examples_run_and_those_that_are_plugins_load(code: str, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "10-example.py").write_text(code)
    commands = [[sys.executable, "-W", "error", "10-example.py"]]
    if re.search(r"^(?:async )?def mq_", code, re.MULTILINE):
        commands.append([sys.executable, "-m", "mqcore", "check", "10-example.py"])
    for command in commands:
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stderr) == (0, "")


C_PLUGINS = [
    pytest.param(code, id=f"{path.name}:{number}")
    for path in sorted(DOCS.glob("*.md"))
    if path.name != "native.md"  # its plugins do something, which tests/native/test_native_examples.py looks at
    for number, code in enumerate(re.findall(r"^```c\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE), 1)
    if "mq_version" in code
]


@pytest.mark.parametrize("code", C_PLUGINS)
def test_plugins_in_c_are_compiled_and_load(code: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.c").write_text(code)
    plugin = tmp_path / "10-plugin.so"
    compiler = ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", f"-I{mqcore.get_include()}"]
    subprocess.run([*compiler, "-o", plugin, tmp_path / "plugin.c"], check=True)
    with mqcore.Plugins(plugin) as plugins:
        assert [each.name for each in plugins] == ["10-plugin"]


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


def test_what_the_architecture_page_names_is_there() -> None:
    sources = [path.read_text() for path in MQCORE.rglob("*.p*") if path.suffix in (".py", ".pyx", ".pxd")]
    words = set(re.findall(r"\w+", "".join(sources)))
    page = re.sub(r"^```.*?^```", "", (DOCS / "architecture.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {word for text in re.findall(r"`([^`]+)`", page) for word in re.findall(r"[A-Za-z_]\w*", text)}
    assert named - words <= {"tests", "reference", "await"}


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
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
