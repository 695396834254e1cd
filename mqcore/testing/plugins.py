"""Plugins for tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from ..errors import PluginError
from ..hooks import MAILERQ_HOOKS, HookSpec, close_to
from ..plugins import Plugins
from ..plugins._files import find
from ..plugins._plugins import load_entry_point

GROUP = "mqcore.plugins"


class PluginFactory:
    """Makes sets of plugins, and closes them in the end. `newest`: the one that was made last, None before that."""

    def __init__(self, *, trust_writable: bool = False) -> None:
        self.newest: Plugins | None = None
        self._made: list[Plugins] = []
        self._trust_writable = trust_writable

    def __call__(
        self,
        *paths: str | os.PathLike[str],
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        entry_point: str | None = None,
        obj: object = None,
        name: str = "plugin",
        hooks: Iterable[HookSpec] = MAILERQ_HOOKS,
    ) -> Plugins:
        """The plugins of these paths, of the entry point of that name, and the object `obj`, which is called `name`.

        `config`: as `mqcore.Plugins` takes it; or the settings of the one plugin that is asked for, without a table around
        them. `hooks`: those that plugins may have, for a server with hooks of its own. They are loaded until `close`.

        Raises PluginError, as a server would not start then, and where the name of a table of `config` seems to be misspelt;
        TypeError for a path that is none.
        """
        for path in paths:
            if not isinstance(path, str | os.PathLike):
                raise TypeError(f"a path of plugins is a str or os.PathLike, not {path!r}; an object is given as obj=, name=")
        names = [found for path in paths for found, _ in find(os.path.abspath(path), trust_writable=self._trust_writable)]
        names += [entry_point] if entry_point else []
        names += [name] if obj is not None else []
        if isinstance(config, Mapping) and config and not any(isinstance(value, Mapping) for value in config.values()):
            if len(names) != 1:
                raise PluginError(f"config= has no tables, and there are {len(names)} plugins; write {{'NAME': {{...}}}}")
            config = {names[0]: config}
        tables = set(config) if isinstance(config, Mapping) else set()
        for unused in sorted(tables - set(names)):
            if close := close_to(unused, set(names) - tables):  # others may be for other tests
                raise PluginError(f"config= has {unused}, and there is no plugin of that name; did you mean {close}?")
        plugins = Plugins(*paths, config=config, hooks=hooks, trust_writable=self._trust_writable)
        self._made.append(plugins)
        if entry_point:
            plugins.add(entry_point, _find_entry_point(entry_point))
        if obj is not None:
            plugins.add(name, obj)
        self.newest = plugins
        return plugins

    def close(self) -> None:
        """Close all that were made; the dispatchers that use them have to be closed before."""
        while self._made:
            self._made.pop().close()


def _find_entry_point(name: str) -> object:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        raise PluginError(f"no installed package has an entry point {name} in {GROUP}; there are: {known}", plugin=name)
    return load_entry_point(found[0])
