"""What the tests of giving back share: a plugin that holds, and ways to give back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mqcore

BACK = ["continue_", "complete", "retry", "fail"]
OUTCOMES = {
    "continue_": mqcore.CONTINUE,
    "complete": mqcore.COMPLETE,
    "retry": mqcore.CONTINUE,
    "fail": mqcore.FAIL,
}


def give(context, message, what):
    """Give back by name."""
    if what == "fail":
        context.fail(message, "no")
    else:
        getattr(context, what)(message)


def in_thread(function, *args):
    """The result of a call made in another thread, or what it raised."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


class Holder:
    """A plugin that holds messages, `times` in all, lets the others pass, and remembers its context."""

    def __init__(self, times=1):
        self.context = None
        self.calls = 0
        self.times = times

    def mq_step(self, context, message):
        self.context = context
        self.calls += 1
        return self.calls <= self.times
