"""`mqcore.mail.hook_types` finds what is wrong in plugins, and nothing else: by mypy --strict and by pyright, once for all."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from mail_tools import EXAMPLES

import mqcore
from mqcore.hooks import LIFECYCLE
from mqcore.mail import hook_types

PLUGINS = Path(__file__).parent.parent / "typing_of_plugins"


def test_each_hook_has_its_types():
    names = {name for name in get_type_hints(hook_types.Hooks) if name not in LIFECYCLE}
    assert names == {spec.name for spec in mqcore.MAILERQ_HOOKS}
    for spec in mqcore.MAILERQ_HOOKS:
        protocol = getattr(hook_types, "".join(part.capitalize() for part in spec.name.split("_")[1:]))
        assert get_type_hints(hook_types.Hooks)[spec.name] is protocol
        assert protocol.__doc__ == f"`{spec.signature}`"
        assert list(inspect.signature(protocol.__call__).parameters) == ["self", "context", "message", *spec.args]


def test_a_plugin_of_that_class_has_only_its_own_hooks():
    class Audit(hook_types.Plugin):
        def mq_smtp_in_message(self, context, message): ...

    with mqcore.Plugins() as plugins:
        plugins.add("50-audit", Audit())
        assert [list(plugin.hooks) for plugin in plugins] == [["mq_smtp_in_message"]]


def test_what_mypy_finds(tmp_path):
    assert importlib.util.find_spec("mypy"), "mypy is in the extra [test]"
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, "--no-error-summary", "--no-pretty"]
    # dkimpy has no types.
    command += ["--disable-error-code", "import-untyped", PLUGINS, EXAMPLES / "plugins"]
    result = subprocess.run(command, cwd=PLUGINS, capture_output=True, text=True, timeout=300)
    found = re.findall(r"(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.MULTILINE)
    assert sorted(set(found)) == sorted(("wrong", str(number), code) for number, code in wrong_lines()), result


def wrong_lines() -> list[tuple[int, str]]:
    """The lines in which an error is to be found, and mypy's name for it."""
    lines = enumerate((PLUGINS / "wrong.py").read_text().splitlines(), 1)
    return [(number, line.partition("# error: ")[2]) for number, line in lines if "# error: " in line]


@pytest.mark.slow
def test_pyright_finds_the_same(tmp_path):
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("needs pyright: pip install pyright")
    files = [*PLUGINS.glob("*.py"), *(EXAMPLES / "plugins").glob("*.py")]
    # dkimpy has no types.
    settings = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False, "reportUnknownMemberType": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    for file in files:
        shutil.copy(file, tmp_path)
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, "--project", tmp_path]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    report = json.loads(result.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files)
    errors = {(Path(found["file"]).stem, found["range"]["start"]["line"] + 1) for found in report["generalDiagnostics"]}
    assert sorted(errors) == [("wrong", number) for number, _ in wrong_lines()], report["generalDiagnostics"]
