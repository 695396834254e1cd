"""When a mail is tried again: by its own wishes, in MailerQ's keys, and by the ladder, the rungs of which are queues."""

from __future__ import annotations

import calendar
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

MAX_DELIVER_TIME = 86_400.0
"""Seconds from when a mail was received until it is given up."""
_FORMAT = "%Y-%m-%d %H:%M:%S"


def write_time(seconds: float) -> str:
    """As MailerQ writes it: UTC."""
    return time.strftime(_FORMAT, time.gmtime(seconds))


def read_time(value: Any) -> float | None:
    """Seconds since 1970, of what MailerQ writes, or of a number; None for all else."""
    if isinstance(value, str):
        try:
            return float(calendar.timegm(time.strptime(value, _FORMAT)))
        except ValueError:
            return None
    return float(value) if _is_number(value) and 0 < value < 1 << 40 else None


def choose_rung(known: Mapping[str, Any], attempt: int, received: float, ladder: Sequence[int], now: float) -> int | str:
    """How many seconds a mail waits after so many attempts, the last of which is over; or why it is not tried again."""
    if not ladder:
        return "retry=no: it is not tried again"
    most = known.get("maxattempts")
    if _is_number(most) and 0 < most <= attempt:
        return f"it was tried {attempt} times, as often as its maxattempts allows"
    waits = known.get("retries")
    if not (isinstance(waits, list) and all(map(_is_number, waits))):
        waits = list(ladder)
    if not waits:
        return "its retries are none"
    rung = round_up(waits[min(attempt, len(waits)) - 1], ladder)
    if now + rung > _deadline(known, received):
        return f"its time is over: it would be tried again in {rung} s"
    return rung


def round_up(seconds: float, ladder: Sequence[int]) -> int:
    """The rung that is as long, or the next longer one; if there is none, the longest."""
    return next((rung for rung in ladder if rung >= seconds), ladder[-1])


def time_to_wait(known: Mapping[str, Any], now: float) -> float:
    """Until the time that the mail itself says is that of its next attempt; 0 if that is over, or not known."""
    planned = known.get("nextattempt")
    due = read_time(planned.get("time")) if isinstance(planned, dict) else None
    return 0.0 if due is None else max(due - now, 0.0)


def _deadline(known: Mapping[str, Any], received: float) -> float:
    """`maxdelivertime` is how many seconds it has, or when they are over."""
    value = known.get("maxdelivertime")
    if isinstance(value, str):
        due = read_time(value)
        return received + MAX_DELIVER_TIME if due is None else due
    return received + (value if _is_number(value) and value > 0 else MAX_DELIVER_TIME)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
