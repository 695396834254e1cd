"""Growth: what a message costs stays the same, however many are held, lack the hook, or came before in the step.

Each row compares the large case, as mqcore's, with the small one, as the base.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from holding import ByMqcore
from subjects import PASSES_ON, Subject, functions_of, messages, subject

import mqcore

Against = Callable[..., None]
COUNT = 1_000


@contextmanager
def held(loop: Any, count: int) -> Iterator[ByMqcore]:
    """A way to hold so many messages."""
    way = ByMqcore(loop, messages(count))
    yield way
    way.close()


@pytest.mark.parametrize(
    ("name", "count"), [("1k", 1_000), ("100k", 100_000), pytest.param("1M", 1_000_000, marks=pytest.mark.large)]
)
def test_held(loop: Any, against: Against, name: str, count: int) -> None:
    """Hold and give back, against the number of messages held at once."""
    with held(loop, 10_000) as few, held(loop, count) as many:
        contenders = {"10k held": few.cycle, "mqcore": many.cycle}
        counts = {"10k held": 10_000, "mqcore": count}
        options = {"count": count, "counts": counts, "before": gc.collect, "at": count}
        against("growth", f"{name} held, beside 10k", contenders, rounds=9, **options)


@pytest.mark.parametrize("idle", [10, 100, 1_000])
def test_plugins_without_the_hook(loop: Any, against: Against, idle: int) -> None:
    """`run_many` through 3 plugins, against the number of further plugins that lack the hook."""
    taken = messages(COUNT)
    with subject(loop, PASSES_ON, 3) as alone, subject(loop, PASSES_ON, 3, idle) as among:
        contenders = {"3 plugins": lambda: alone.hook.run_many(taken), "mqcore": lambda: among.hook.run_many(taken)}
        against("growth", f"3 of {3 + idle:,} plugins have the hook", contenders, rounds=60, count=COUNT, at=idle)


class Retrying:
    """Steps with so many retries, asked for by the second of two plugins."""

    def __init__(self, loop: Any, retries: int, passes: int) -> None:
        """`passes`: how often a round goes through the plugins, in all its steps."""

        def hook(context: mqcore.Context, message: mqcore.Message) -> Any:
            return message.retries < retries and mqcore.RETRY

        self.subject = Subject(loop, (*functions_of(PASSES_ON, 1), hook), max_retries=retries)
        self.messages = messages(passes // (1 + retries))
        self.passes = len(self.messages) * (1 + retries)

    def run(self) -> None:
        """One round."""
        self.subject.hook.run_many(self.messages)


@pytest.mark.parametrize("retries", [30, 100, 1_000])
def test_retries(loop: Any, against: Against, retries: int) -> None:
    """The cost of one pass through two plugins, against the number of retries before it."""
    with ExitStack() as stack:
        few, many = Retrying(loop, 10, 10_000), Retrying(loop, retries, 10_000)
        stack.callback(few.subject.dispatcher.close)
        stack.callback(many.subject.dispatcher.close)
        contenders = {"10 retries": few.run, "mqcore": many.run}
        counts = {"10 retries": few.passes, "mqcore": many.passes}
        against("growth", f"{retries:,} retries", contenders, rounds=40, count=COUNT, counts=counts, at=retries)
