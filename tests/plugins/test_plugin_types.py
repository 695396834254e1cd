"""`mqcore.mail.hook_types` finds what is wrong in plugins, and nothing else: by mypy --strict, once for all."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

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
    lines = enumerate((PLUGINS / "wrong.py").read_text().splitlines(), 1)
    expected = [("wrong", str(number), line.partition("# error: ")[2]) for number, line in lines if "# error: " in line]
    assert sorted(set(found)) == sorted(expected), result.stdout + result.stderr
