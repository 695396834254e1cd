"""What a hook may return, and how a step ends."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """How a step ended. A hook may return CONTINUE and COMPLETE too, as its verdict."""

    CONTINUE = "continue"
    """All plugins let the message go on."""
    COMPLETE = "complete"
    """A plugin was done with it, and the rest was skipped."""
    FAIL = "fail"
    """`message.error` says why."""


class Verdict(enum.Enum):
    """What a hook may return beside an outcome, a bool, None or a Hold."""

    RETRY = "retry"
    """Start the step again, with the first plugin."""
    HOLD = "hold"
    """The plugin has control now, and gives it back later. True says the same."""


CONTINUE = Outcome.CONTINUE
COMPLETE = Outcome.COMPLETE
FAIL = Outcome.FAIL
RETRY = Verdict.RETRY
HOLD = Verdict.HOLD
