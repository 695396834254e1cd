"""What a run takes from its options, at a reload."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..mail import Gateway
from ..mail.base import Prepared, together
from ..mail.places import Location
from ..mail.places import options as options_of_places
from ..plugins import Plugin
from ..server.options import PlaceOptions
from .configuration import Setting
from .options import options_for
from .output import begin_log
from .watchdog import report_as

CHANGEABLE = ("log-format", "log-level", "max-in-flight")

Settings = Mapping[str, Setting]


class RunOptions:
    """A part of a server: its options, as `read` says anew, or raises. Those of the places, the log, and how much may be in
    flight; what else differs is told. `check` is told which plugins there will be."""

    def __init__(
        self,
        gateway: Gateway,
        settings: Settings,
        read: Callable[[], argparse.Namespace],
        places: Sequence[Location[Any]],
        of_places: PlaceOptions,
        check: Callable[[Sequence[Plugin]], object],
    ) -> None:
        self._gateway = gateway
        self._in_force = _as_written(settings)
        self._read = read
        self._places = places
        self._of_places = of_places
        self._check = check

    def __call__(self) -> Prepared:
        options = self._read()
        of_places = self._of_places.prepare(options_for(options, *self._places))
        return together([of_places, self._prepare(options.settings)])

    def _prepare(self, settings: Settings) -> Prepared:
        written = _as_written(settings)
        differ = [name for name, value in written.items() if value != self._in_force[name]]
        changed = tuple(name for name in differ if name in CHANGEABLE)

        def commit() -> None:
            self._in_force |= {name: written[name] for name in changed}
            format, level = settings["log-format"].value, settings["log-level"].value
            begin_log(format, level)
            report_as(self._gateway.dispatcher, format)
            self._gateway.max_in_flight = settings["max-in-flight"].value

        return Prepared(commit, changed, tuple(name for name in differ if name not in CHANGEABLE), self._check)


def _as_written(settings: Settings) -> dict[str, Any]:
    """Not as they were understood: paths may have been where a plugin made the current directory another one."""
    places = {option.name for option in options_of_places()}
    return {
        name: setting.value if setting.written is None else setting.written
        for name, setting in settings.items()
        if name != "config" and name not in places
    }
