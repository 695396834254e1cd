"""What tests with other people's programs share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Broker


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that programs may look into that run as another user, with a name that is short enough for a socket in it.

    pytest's own is closed to others, and is closed again by each run of pytest that begins meanwhile.
    """
    path = Path(tempfile.mkdtemp(prefix="mqcore-partners-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One for all tests, as it takes long to start; each test has queues of its own."""
    with Broker() as broker:
        yield broker
