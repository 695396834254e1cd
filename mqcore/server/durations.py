"""Durations, as people write them."""

from __future__ import annotations

import re

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST = 1e9
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h)?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `500ms`, `10s`, `5m`, `2h` or `10`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None or (seconds := float(match[1]) * UNITS[match[2] or "s"]) > LONGEST:
        raise ValueError(f"{text!r} is no duration; write 500ms, 10s, 5m or 2h")
    return seconds


def write_duration(seconds: float) -> str:
    """As `25 ns`, `8 us`, `1.25 ms`, `600 s`: whole, or with three digits."""
    for unit, scale in (("s", 1), ("ms", 1_000)):
        if (value := seconds * scale) >= 1:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    for unit, scale in (("us", 1_000_000), ("ns", 1_000_000_000)):
        if (value := seconds * scale) >= 1:
            return f"{value:.0f} {unit}"
    return "0 s"
