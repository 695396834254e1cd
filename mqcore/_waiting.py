"""Awaiting a step.

A coroutine of Python's own and not of Cython's: to one of its own CPython hands the outcome directly, to any other since
3.12 by an exception, which costs more than a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._dispatch import Hook
    from ._message import Message
    from .verdicts import Outcome


async def outcome_of(hook: Hook, message: Message, args: tuple[Any, ...]) -> Outcome:
    """Run a step to its end."""
    outcome = hook.run_one(message, args, None)
    if outcome is not None:
        return outcome
    waiter = hook._wait_for(message)
    try:
        return await waiter.future
    finally:
        waiter.end(message)
