"""Builds the floors, which are written in C, for the interpreter that runs the bench."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def build(name: str) -> ModuleType:
    """Import the module of `bench/NAME.c`, compiled as CPython's own modules are, if it is not up to date."""
    source = HERE / f"{name}.c"
    target = HERE / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        command = [
            *shlex.split(sysconfig.get_config_var("LDSHARED")),
            *shlex.split(sysconfig.get_config_var("CFLAGS")),
            *("-O3", "-fPIC", "-Wall", "-I", sysconfig.get_path("include"), str(source), "-o", str(target)),
        ]
        subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location(name, target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
