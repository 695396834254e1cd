"""How the programs that broke the core are noted, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostile_tools import Owner

CASES: dict[str, Callable[[Owner], None]] = {}
UVLOOP_ONLY: set[str] = set()


def case(function: Callable[[Owner], None]) -> Callable[[Owner], None]:
    CASES[function.__name__] = function
    return function


def uvloop_only(function: Callable[[Owner], None]) -> Callable[[Owner], None]:
    UVLOOP_ONLY.add(function.__name__)
    return function


def raised(function: Callable[..., Any], *args: Any, **options: Any) -> BaseException | None:
    """What a call raised, or None."""
    try:
        function(*args, **options)
    except BaseException as error:
        return error
    return None


def settle(owner: Owner, dispatcher: Any) -> None:
    """Let the loop run until nothing is queued any more."""
    owner.turn()
    owner.run_until(lambda: dispatcher.stats().running == 0)
