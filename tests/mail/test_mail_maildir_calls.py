"""A Maildir as a sink, on a system whose calls fail: see maildir_calls.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from maildir_calls import CASES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The cases that failed, and how."""
    library = tmp_path_factory.mktemp("calls") / "calls.so"
    compiler = ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "maildir_calls.c", "-ldl"]
    subprocess.run(compiler, check=True, timeout=60)
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # where a sync takes no time, as what is said of it counts here
        command = [sys.executable, "-P", "-X", "dev", "-W", "error", HERE / "maildir_calls.py", folder]
        done = subprocess.run(command, env=environment, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_calls(failures, case):
    assert case not in failures, failures[case]
