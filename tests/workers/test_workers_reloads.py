"""Reloads under load, in a small way; in a big one: `reloads.py`."""

from __future__ import annotations

import asyncio

import pytest
from cli_tools import serve
from reloads import load


@pytest.mark.slow
def test_no_client_sees_a_reload():
    with serve("--to", "null:", "--workers", 2) as server:
        seen, errors = asyncio.run(load(server, 300, 3))
        assert server.process.wait(60) == 0
    assert (errors, seen["reloads"]) == ([], 3)
    assert seen["whole"] + seen["shut"] == seen["connections"] >= 300
    assert seen["mails"] >= 2 * seen["whole"] > 0
