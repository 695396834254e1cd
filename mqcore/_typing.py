"""Types for the annotations of plugins."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Literal, TypeAlias

from ._context import Hold
from .verdicts import Outcome, Verdict

_Verdict: TypeAlias = bool | Hold | Literal[Outcome.CONTINUE, Outcome.COMPLETE, Verdict.HOLD, Verdict.RETRY] | None

HookResult: TypeAlias = _Verdict | Coroutine[Any, Any, _Verdict]
"""What a hook may return: a verdict, or, if it is a coroutine function, a coroutine that returns one."""
