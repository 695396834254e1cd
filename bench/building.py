"""Builds what is written in C: the floors, for the interpreter that runs the bench, and programs."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import mqcore

HERE = Path(__file__).parent


def build_cython(name: str) -> ModuleType:
    """Import the module of `bench/NAME.pyx`, built against the mqcore that is measured."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    folder = tempfile.mkdtemp(prefix="mqcore-bench-")
    site = Path(mqcore.__file__).parent.parent
    extension = Extension(name, [str(HERE / f"{name}.pyx")], extra_compile_args=["-O3"])
    modules = cythonize([extension], include_path=[str(site)], build_dir=folder, quiet=True)
    command = Distribution({"name": name, "ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = folder  # type: ignore[attr-defined]
    command.ensure_finalized()
    command.run()
    return load(name, Path(folder) / (name + sysconfig.get_config_var("EXT_SUFFIX")))


def build(name: str) -> ModuleType:
    """Import the module of `bench/NAME.c`, compiled as CPython's own modules are, if it is not up to date."""
    source = HERE / f"{name}.c"
    target = HERE / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        command = [
            *shlex.split(sysconfig.get_config_var("LDSHARED")),
            *shlex.split(sysconfig.get_config_var("CFLAGS")),
            # Aligned: where a loop of a few instructions happens to lie decides about a tenth of its time.
            *("-O3", "-falign-loops=64", "-fPIC", "-Wall"),
            *("-I", sysconfig.get_path("include"), str(source), "-o", str(target)),
        ]
        subprocess.run(command, check=True)
    return load(name, target)


def build_program(name: str, *options: str) -> Path:
    """The program of `bench/NAME.c`. `options`: further ones of the compiler, such as libraries."""
    target = Path(tempfile.mkdtemp(prefix="mqcore-bench-")) / name
    subprocess.run(["cc", "-O2", "-Wall", str(HERE / f"{name}.c"), "-o", str(target), *options], check=True)
    return target


def load(name: str, target: Path) -> ModuleType:
    """Import the module in a file."""
    spec = importlib.util.spec_from_file_location(name, target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
