"""The options of a run that are no place's, at a reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..mail import Gateway
from ..mail.base import Prepared
from ..mail.places import options as options_of_places
from .configuration import Setting
from .output import begin_log

CHANGEABLE = ("log-format", "log-level", "max-in-flight")

Settings = Mapping[str, Setting]


class RunOptions:
    """A part of a server: the log, and how much may be in flight, as `read` says anew, or raises. What else differs is told."""

    def __init__(self, gateway: Gateway, settings: Settings, read: Callable[[], Settings]) -> None:
        self._gateway = gateway
        self._in_force = _as_written(settings)
        self._read = read

    def __call__(self) -> Prepared:
        settings = self._read()
        written = _as_written(settings)
        differ = [name for name, value in written.items() if value != self._in_force[name]]
        changed = tuple(name for name in differ if name in CHANGEABLE)

        def commit() -> None:
            self._in_force |= {name: written[name] for name in changed}
            begin_log(settings["log-format"].value, settings["log-level"].value)
            self._gateway.max_in_flight = settings["max-in-flight"].value

        return Prepared(commit, changed, tuple(name for name in differ if name not in CHANGEABLE))


def _as_written(settings: Settings) -> dict[str, Any]:
    """Not as they were understood: paths may have been where a plugin made the current directory another one."""
    places = {option.name for option in options_of_places()}
    return {
        name: setting.value if setting.written is None else setting.written
        for name, setting in settings.items()
        if name != "config" and name not in places
    }
