"""The header for native plugins: any C or C++ compiler takes it without a warning, wherever mqcore is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mqcore
from mqcore.hooks import API_VERSION, LIFECYCLE, MAILERQ_HOOKS

INCLUDE = Path(mqcore.get_include())
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def definition(line: str) -> str:
    """What a plugin writes for a prototype of the header."""
    returned, _, rest = line.removeprefix("MQ_EXPORT ").partition(" ")
    name, _, arguments = rest.rstrip(";").partition("(")
    names = [argument.split()[-1].lstrip("*") for argument in arguments.rstrip(")").split(",")]
    uses = "".join(f"(void){each}; " for each in names if each != "void")
    value = {"void": "", "bool": "return false; ", "int": "return MQ_API_VERSION; "}[returned]
    return f"MQ_EXPORT {returned} {name}({arguments} {{ {uses}{value}}}\n"


def prototypes() -> list[str]:
    text = " ".join((INCLUDE / "mqcore.h").read_text().split())
    return [f"MQ_EXPORT {each.partition(';')[0]};" for each in text.split("MQ_EXPORT ")[2:]]


def test_it_declares_all_hooks_and_the_version() -> None:
    names = {line.split("(")[0].split()[-1] for line in prototypes()}
    assert names == {*LIFECYCLE, *(hook.name for hook in MAILERQ_HOOKS)}
    assert f"#define MQ_API_VERSION {API_VERSION}\n" in (INCLUDE / "mqcore.h").read_text()


@pytest.mark.parametrize(
    ("compiler", "header"),
    [
        ("cc -std=c99", "mqcore.h"),
        ("cc -std=c17", "mailerq.h"),
        ("c++ -std=c++11 -xc++", "mailerq.h"),
        ("c++ -std=c++20 -xc++", "mqcore.h"),
    ],
)
def test_it_compiles_without_a_warning(compiler: str, header: str, tmp_path: Path) -> None:
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"needs {compiler.split()[0]}, which is not installed")
    source = tmp_path / "plugin.c"
    source.write_text(f"#include <{header}>\n" + "".join(definition(line) for line in prototypes()))
    library = tmp_path / "plugin.so"
    options = ("-fvisibility=hidden", "-shared", "-fPIC", "-I", INCLUDE)
    subprocess.run((*compiler.split(), *STRICT, *options, source, "-o", library), check=True, timeout=60)
    symbols = subprocess.run(("nm", "-D", "--defined-only", library), capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert exported == {*LIFECYCLE, *(hook.name for hook in MAILERQ_HOOKS)}


def test_the_command_and_pkg_config_say_where_it_is() -> None:
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    command = (sys.executable, "-P", "-m", "mqcore", "include")
    said = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert said.stdout == f"{INCLUDE}\n"
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config, which is not installed")
    command = ("pkg-config", "--cflags", "mqcore")
    said = subprocess.run(
        command, env=os.environ | {"PKG_CONFIG_PATH": str(INCLUDE)}, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [f"-I{INCLUDE}"]
