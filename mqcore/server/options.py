"""The options of the places, at a reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..mail.base import Place, Prepared

Options = Mapping[str, Any]


class PlaceOptions:
    """A part of a server: what was chosen for its places, source and sink, which `read` says anew, or raises.

    What cannot change while it runs stays as it was, and is told of."""

    def __init__(self, places: Sequence[Place], in_force: Sequence[Options], read: Callable[[], Sequence[Options]]) -> None:
        self._places = places
        self._in_force = in_force
        self._read = read

    def __call__(self) -> Prepared:
        ready: list[Prepared] = []
        chosen: list[Options] = []
        changed: list[str] = []
        needs_restart: list[str] = []
        for place, old, new in zip(self._places, self._in_force, self._read(), strict=True):
            differ = {name for name in {*old, *new} if old.get(name) != new.get(name)}
            fixed = differ - place.changeable
            options = {name: value for name, value in new.items() if name not in fixed}
            options |= {name: old[name] for name in fixed if name in old}
            prepared = place.prepare(options)
            ready.append(prepared)
            chosen.append(options)
            changed += [*sorted(map(_as_written, differ & place.changeable)), *prepared.changed]
            needs_restart += [*sorted(map(_as_written, fixed)), *prepared.needs_restart]

        def commit() -> None:
            for each in ready:
                each.commit()
            self._in_force = chosen

        return Prepared(commit, tuple(dict.fromkeys(changed)), tuple(dict.fromkeys(needs_restart)))


def _as_written(name: str) -> str:
    return name.replace("_", "-")
