"""What `import mqcore` loads, and what waits until it is asked for."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import mqcore

# Each takes as long as some of the core's modules, and is for few: a config file, a watchdog, a native plugin, a misspelt name.
LATE = ("difflib", "importlib.metadata", "rich", "shutil", "tempfile", "tomllib")


def test_import_loads_nothing_that_it_does_not_need_yet() -> None:
    code = f"import sys, uvloop, mqcore; print(*[name for name in {LATE} if name in sys.modules])"
    # -I -S: site-packages may have .pth files that import what they like.
    path = [entry for entry in sys.path if "site-packages" in entry]
    code = f"import sys; sys.path += {path}; {code}"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == []


def test_version_is_that_of_the_package() -> None:
    assert mqcore.__version__ == importlib.metadata.version("mqcore")
    assert "__version__" in mqcore.__all__


def test_no_other_name_is_made_up() -> None:
    with pytest.raises(AttributeError, match="module 'mqcore' has no attribute 'Despatcher'"):
        mqcore.Despatcher  # type: ignore[attr-defined]  # noqa: B018
