"""What tests of the kit are made with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqcore.testing import PluginFactory


@pytest.fixture
def factory() -> Iterator[PluginFactory]:
    """Folders of tests may be writable by everyone."""
    made = PluginFactory(trust_writable=True)
    yield made
    made.close()
