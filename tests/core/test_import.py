"""What `import mqcore` loads, and what waits until it is asked for."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig

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


def test_an_asyncio_without_its_c_module_is_refused() -> None:
    """What mqcore reads of futures is there alone."""
    code = "import sys; sys.modules['_asyncio'] = None; import mqcore"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "ImportError: asyncio.Future._callbacks is None: mqcore needs" in ended.stderr


def test_version_is_that_of_the_package() -> None:
    assert mqcore.__version__ == importlib.metadata.version("mqcore")
    assert "__version__" in mqcore.__all__


@pytest.mark.parametrize("verdict", [*mqcore.Outcome, *mqcore.Verdict])
def test_verdicts_are_immortal_where_threads_run_at_once(verdict: object) -> None:
    """They would all count them."""
    before = sys.getrefcount(verdict)
    more = [verdict] * 10
    counted = sys.getrefcount(verdict) - before
    assert (counted, len(more)) == (0 if sysconfig.get_config_var("Py_GIL_DISABLED") else 10, 10)


def test_no_other_name_is_made_up() -> None:
    with pytest.raises(AttributeError, match="module 'mqcore' has no attribute 'Despatcher'"):
        mqcore.Despatcher  # type: ignore[attr-defined]  # noqa: B018
