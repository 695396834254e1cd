"""How much is tried of what tests make up: a fifth of it by day, all of it with `--slow`, as by night."""

from __future__ import annotations

import os

THOROUGH = "MQCORE_THOROUGH" in os.environ
"""scripts/dev sets it."""


ASYNCIO_DEBUG = THOROUGH or "MQCORE_ASYNCIO_DEBUG" in os.environ
"""Whether the loops are in asyncio's debug mode, which takes as long as all else: with `--slow`, and on the debug build."""


def examples(count: int) -> int:
    """So many of `count` that a thorough run tries."""
    return count if THOROUGH else -(-count // 5)
