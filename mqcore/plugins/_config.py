"""The config of plugins: a table for each, from a mapping or a TOML file."""

from __future__ import annotations

import difflib
import logging
import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import PluginError
from ._files import bad_line, line_at, unreadable

Config = Mapping[str, Any]

OWN = ("hold_timeout", "on_error")
"""The keys of a plugin's table that are not the plugin's own."""

_log = logging.getLogger("mqcore")


def read_config(source: Config | str | None) -> Config:
    """The config as a mapping of plugins' names to their tables."""
    config = read_toml(source) if isinstance(source, str) else dict(source or {})
    plugins = config.get("plugins", config)
    if not isinstance(plugins, Mapping):
        path = source if isinstance(source, str) else None
        raise PluginError(
            f"plugins must be a table of tables, one for each plugin, and is {plugins!r}; write [plugins.NAME]",
            path=path,
        )
    return plugins


def read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise unreadable(error, path) from error
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise PluginError(f"{error}; save the file as UTF-8", path=path, line=bad_line(data)) from error
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at line (\d+), (column \d+)\)", str(error), re.DOTALL)
        what, line = (f"{found[1]}, at {found[3]}", int(found[2])) if found else (str(error), line_at(data, len(data)))
        raise PluginError(f"not valid TOML: {what}", path=path, line=line) from error


def settings_of(plugin: str, path: str | None, config: Config, source: Config | str | None) -> Config:
    """The plugin's table; the keys that are the core's own are checked here, all others are the plugin's affair."""
    table = config.get(plugin, {})
    wrong = None
    if not isinstance(table, Mapping):
        wrong = f"its config must be a table, and is {table!r}"
    else:
        timeout, on_error = table.get("hold_timeout", 0), table.get("on_error", "fail")
        if type(timeout) not in (int, float) or not 0 <= timeout <= 1e9:
            wrong = f"hold_timeout in its config must be a number of seconds, or 0 for none, and is {timeout!r}"
        elif on_error not in ("fail", "continue"):
            wrong = f'on_error in its config must be "fail" or "continue", and is {on_error!r}'
        for name in table:
            close = name not in OWN and difflib.get_close_matches(str(name), OWN, 1, cutoff=0.8)
            if close:
                _log.warning("plugin %s: its config has %s; did you mean %s?", plugin, name, close[0])
    if wrong:
        raise PluginError(wrong, plugin=plugin, path=source if isinstance(source, str) else path)
    return MappingProxyType(dict(table))
