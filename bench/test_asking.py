"""What it takes to ask a dispatcher, on the loop that moves the messages: what is held, and what was counted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from subjects import TAKES, messages, subject

import mqcore
from mqcore.stats import HookStats

GROUP = "asking"
LIMIT = 100
STAGES = ("connect", "mailfrom", "rcptto", "data", "message")


@pytest.mark.large
def test_held(loop: Any, against: Callable[..., None]) -> None:
    """The oldest of very many, beside as many of a few."""
    few, many = messages(1_000), messages(1_000_000)
    with subject(loop, TAKES, 1) as with_few, subject(loop, TAKES, 1) as with_many:
        with_few.hook.run_many(few)
        with_many.hook.run_many(many)
        contenders = {
            "of 1,000": lambda: with_few.dispatcher.held(limit=LIMIT),
            "mqcore": lambda: with_many.dispatcher.held(limit=LIMIT),
        }
        against(GROUP, "the 100 oldest of a million held messages", contenders, rounds=50, count=1)


def test_stats(loop: Any, against: Callable[..., None]) -> None:
    """All rows of many plugins, beside what CPython takes to make the same rows of values that are there."""
    plugins = mqcore.Plugins()
    for number in range(100):
        hooks = {f"mq_smtp_in_{stage}": lambda context, message, *arguments: False for stage in STAGES}
        plugins.add(f"{number:03}-plugin", SimpleNamespace(**hooks))
    with mqcore.Dispatcher(plugins, loop) as dispatcher:
        rows = [tuple(row) for row in dispatcher.stats().hooks]
        assert len(rows) == 500
        contenders = {"floor": lambda: tuple([HookStats._make(row) for row in rows]), "mqcore": dispatcher.stats}
        against(GROUP, "the counts of 100 plugins with 5 hooks each", contenders, rounds=50, count=1)
    plugins.close()
