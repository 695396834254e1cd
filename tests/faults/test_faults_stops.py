"""SIGTERM in every phase; `stops.py` does it for each pair."""

from __future__ import annotations

import asyncio

import pytest
from stops import CASES, is_kept, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", ["smtp", "lmtp-unix", "mbox", "maildir"])
def test_nothing_is_lost(source):
    """Where no sink has to do with it yet, with one of them."""
    cases = [case for case in CASES if case.source == source and (case.sink == "maildir" or " at " in f" {case.phase} ")]
    cases += [case for case in CASES if case.source == source and (case.sink, case.phase) == ("mbox", "committing")]

    async def stop_all():
        return [(case, it) async for case, it in measure(cases, at_once=len(cases)) if not is_kept(case, it)]

    assert asyncio.run(stop_all()) == []
