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
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(match[1], match[2], id=f"{name}:{text[: match.start()].count(chr(10)) + 2}")
    for name in ("control.md", "gateway.md")
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
