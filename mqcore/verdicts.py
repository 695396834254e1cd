"""What a hook may return, and how a step ends."""

from __future__ import annotations

import enum
from typing import Final


class Outcome(enum.Enum):
    """How a step ended. A hook may return CONTINUE and COMPLETE too, as its verdict."""

    CONTINUE = "continue"
    """All plugins let the message go on."""
    COMPLETE = "complete"
    """A plugin was done with it, and the rest was skipped."""
    FAIL = "fail"
    """`message.error` says why."""


class Verdict(enum.Enum):
    """What a hook may return beside CONTINUE, COMPLETE, a bool, None or a Hold."""

    HOLD = "hold"
    """I have the message now, and give it back later; True says the same."""

    RETRY = "retry"
    """Start the step again, with the first plugin."""


# Final, so that a type checker knows each by its value.
CONTINUE: Final = Outcome.CONTINUE
COMPLETE: Final = Outcome.COMPLETE
FAIL: Final = Outcome.FAIL
HOLD: Final = Verdict.HOLD
RETRY: Final = Verdict.RETRY
