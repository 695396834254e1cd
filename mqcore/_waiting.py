"""Awaiting a step.

A coroutine of Python's own and not of Cython's: to one of its own CPython hands the outcome directly, to any other since
3.12 by an exception, which costs more than a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import MqError
from .verdicts import FAIL

if TYPE_CHECKING:
    from ._hook import Hook
    from ._message import Message
    from .verdicts import Outcome


def nobody_waits_yet(message: Message, outcome: Outcome) -> None:
    """Stand in for the Waiter of a step that has just begun: it is the step's ``done`` until there is a Waiter."""


async def outcome_of(hook: Hook, message: Message, args: tuple[Any, ...]) -> Outcome:
    """Run a step to its end."""
    outcome = hook._begin_awaited(message, args)
    if outcome is not None:
        return outcome
    try:
        waiter = hook._wait_for(message)
    except BaseException:
        hook.dispatcher.cancel(message)
        raise
    if waiter is None:  # it was cancelled, or the dispatcher closed, before the plugins' things had been dropped
        return FAIL
    try:
        return await waiter.future
    finally:
        waiter.end(message)


async def checked_outcome_of(hook: Hook, message: Message, args: tuple[Any, ...]) -> Outcome:
    """The same, but what failed is raised."""
    outcome = await outcome_of(hook, message, args)
    if outcome is not FAIL:
        return outcome
    error = message.error
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        raise error
    raise MqError(f"the step of {hook.name} failed: {error!r}") from error
