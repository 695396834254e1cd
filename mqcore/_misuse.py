"""What plugins and callers are told when they gave what is not wanted."""

from __future__ import annotations

from ._context import Hold
from .errors import MqError
from .verdicts import Outcome

# The decisions of a give-back, by their number in `_message.pxd`.
SPELT = {1: "continue", 2: "complete", 3: "retry", 4: "fail"}


def wrong_result(plugin: str, hook: str, value: object, early: int) -> Exception:
    """The error for what a hook returned. ``early``: the decision by which it had given the message back before, or 0."""
    if early:
        return MqError(
            f"plugin {plugin} gave the message back in {hook} ({SPELT[early]}), but then returned "
            f"{describe(value)}; return HOLD after giving back"
        )
    hint = ""
    if value is Outcome.FAIL:
        hint = "; to fail the step, raise an exception, or call context.fail(message, error) and return HOLD"
    elif type(value) in (int, tuple) and str(value).lstrip("(")[:1] in ("4", "5"):
        hint = "; to refuse a mail, call message.reject(550, text) and return None"
    return TypeError(
        f"plugin {plugin} returned {describe(value)} from {hook}; a hook returns False, None, CONTINUE, COMPLETE, "
        f"RETRY, HOLD (or True), or the Hold of this message{hint}"
    )


def describe(value: object) -> str:
    """Describe an object that somebody gave, whatever its repr does."""
    if type(value) is Hold:  # isinstance() would ask the object for its class
        return "a Hold that is over or belongs to another message"
    try:
        text = repr(value)
    except Exception:
        text = f"an object of class {type(value).__name__}, whose repr raises"
    return text if len(text) <= 80 else f"{text[:77]}..."
