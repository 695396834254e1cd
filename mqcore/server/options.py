"""The options of the places, at a reload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..mail.base import Place, Prepared, together

Options = Mapping[str, Any]


class PlaceOptions:
    """What was chosen for the places of a server, source and sink."""

    def __init__(self, places: Sequence[Place], in_force: Sequence[Options]) -> None:
        self._places = places
        self._in_force = in_force

    def prepare(self, new_options: Sequence[Options]) -> Prepared:
        """Make ready for what is chosen now. What cannot change while they run stays as it was, and is told of."""
        ready: list[Prepared] = []
        chosen: list[Options] = []
        for place, old, new in zip(self._places, self._in_force, new_options, strict=True):
            differ = {name for name in {*old, *new} if old.get(name) != new.get(name)}
            fixed = differ - place.changeable
            options = {name: value for name, value in new.items() if name not in fixed}
            options |= {name: old[name] for name in fixed if name in old}
            prepared = place.prepare(options)
            changed = [name for name in _as_written(differ - fixed) if name not in prepared.needs_restart]
            ready += [Prepared(changed=tuple(changed), needs_restart=tuple(_as_written(fixed))), prepared]
            chosen.append(options)

        def commit() -> None:
            self._in_force = chosen

        return together([*ready, Prepared(commit)])


def _as_written(names: Iterable[str]) -> list[str]:
    return sorted(name.replace("_", "-") for name in names)
