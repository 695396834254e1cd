"""What the command tells of itself: version, completion of arguments, man page."""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from cli_tools import need
from mail_tools import ROOT, run

from mqcore.cli import parser
from mqcore.cli.about import SHELLS


@pytest.mark.parametrize("arguments", [["--version", "-v"], ["-v", "--version"], ["--version", "--verbose"]])
def test_version_and_what_it_runs_on(arguments):
    result = run(*arguments)
    assert (result.stderr, result.returncode) == ("", 0)
    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert lines["mqcore"] == version("mqcore") and lines["uvloop"] == version("uvloop")
    assert lines["python"].startswith(f"{platform.python_version()} ({platform.python_implementation()}, ")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", lines["libuv"])
    assert lines["build"] in ("release", "debug", "sanitize", "threads")


def test_version():
    assert run("--version").stdout == f"mqcore {version('mqcore')}\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell):
    pytest.importorskip("shtab", reason="needs shtab: the extra [manual]")
    result = run("--print-completion", shell)
    assert (result.stderr, result.returncode) == ("", 0)
    for word in ("run", "ctl", "max-in-flight", "trace"):
        assert word in result.stdout
    if shell == "bash":
        subprocess.run([need("bash"), "-n"], input=result.stdout, text=True, check=True, timeout=60)


def test_completion_where_shtab_is_not_installed():
    program = "import sys; sys.modules['shtab'] = None; from mqcore.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", program, "--print-completion", "bash"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--print-completion needs shtab: pip install shtab" in result.stderr and "contrib/completions" in result.stderr


def options_of(parser):
    """All long options, of all commands."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)


def test_what_lies_in_contrib_is_of_these_options():
    """Else run scripts/make_manual.py."""
    options = set(options_of(parser())) - {"--help"}
    files = [*(ROOT / "contrib" / "completions").iterdir(), ROOT / "contrib" / "man" / "mqcore.1"]
    assert len(files) == 4
    for file in files:
        text = file.read_text().replace("\\-", "-")
        if file.suffix == ".tcsh":  # which has them without their dashes
            assert not [option for option in options if option[2:] not in text], file
        else:
            assert not [option for option in options if option not in text], file
            assert not set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - options - {"--help"}, file
