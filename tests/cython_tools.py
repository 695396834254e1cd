"""Modules in Cython that tests need, built against the mqcore that is tested."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mqcore

SETUP = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup

site, name = sys.argv.pop(), sys.argv.pop()
module = Extension(name, [name + ".pyx"], extra_compile_args=["-O0", "-g0"])
setup(ext_modules=cythonize([module], include_path=[site], quiet=True))
"""


def build(folder: Path, name: str, source: str) -> ModuleType:
    """Build and import a module, in that folder; as fast as it can be built, and not as it is fast."""
    (folder / f"{name}.pyx").write_text(source)
    (folder / "setup.py").write_text(SETUP)
    site = Path(mqcore.__file__).parent.parent
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", name, site)
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    (built,) = folder.glob(f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_driver(folder: Path, source: Path) -> ModuleType:
    """Build and import, in that folder, the module with this source."""
    return build(folder, source.stem, source.read_text())
