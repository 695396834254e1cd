"""The figures of several workers as those of one run."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

Figures = dict[str, Any]

LARGEST = ("longest", "held_oldest", "time", "last")
SMALLEST = ("started", "certificate_not_after", "start_time_seconds")
FIRST = ("bounds",)
"""The same in all."""
COLUMNS = ("counts", "hold_times")
"""Numbers that are added one by one."""


def merge(figures: Iterable[Figures]) -> Figures:
    """What `mqcore ctl` and the status page show of each, together. At least one."""
    return reduce(_merge_objects, figures)


def _merge_objects(one: Figures, other: Figures) -> Figures:
    merged = dict(one)
    for name, value in other.items():
        merged[name] = _merge(name, merged[name], value) if name in merged else value
    return merged


def _merge(name: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict):
        return _merge_objects(one, other)
    if isinstance(one, list | tuple):
        return _merge_lists(name, one, other)
    if isinstance(one, bool):
        return one and other
    if isinstance(one, str) or name in FIRST:
        return one
    if name in LARGEST:
        return max(one, other)
    return min(one, other) if name in SMALLEST else one + other


def _merge_lists(name: str, one: Sequence[Any], other: Sequence[Any]) -> Sequence[Any]:
    if name in FIRST:
        return one
    if name in COLUMNS:
        return [*map(operator.add, one, other)]
    rows: dict[Any, Any] = {}
    for row in (*one, *other):
        if isinstance(row, dict):  # of a plugin and a hook
            key = row["plugin"], row["hook"]
            rows[key] = _merge_objects(rows[key], row) if key in rows else row
        elif isinstance(row, list):  # of a number, behind what it is of
            rows[tuple(row[:-1])] = rows.get(tuple(row[:-1]), 0) + row[-1]
        else:
            rows[row] = row
    if (one and isinstance(one[0], list)) or (other and isinstance(other[0], list)):
        return [[*key, number] for key, number in rows.items()]
    return list(rows.values())
