"""Full disks, disks that fail, few files, little memory; `shortages.py` tries more sources."""

from __future__ import annotations

import asyncio

import pytest
from shortages import CASES, is_kept, suffer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", [case for case in CASES if case.source in ("smtp", "lmtp-unix", "mbox")], ids="-".join)
def test_nothing_is_lost(case):
    result = asyncio.run(suffer(case))
    assert is_kept(case, result), result
