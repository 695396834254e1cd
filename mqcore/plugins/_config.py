"""The config of plugins: a table for each, from a mapping or a TOML file."""

from __future__ import annotations

import logging
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import PluginError
from ..hooks import Settings, close_to
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
            line=None if path is None else line_of(path, "plugins"),
        )
    return plugins


def read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise unreadable(error, path) from error
    import tomllib  # takes its time, which most need not wait for

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise PluginError(f"{error}; save the file as UTF-8", path=path, line=bad_line(data)) from error
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at line (\d+), (column \d+)\)", str(error), re.DOTALL)
        if data.startswith(BOM_UTF8):
            what = "it begins with a byte order mark; save the file as UTF-8 without one"
            raise PluginError(what, path=path, line=1) from error
        what, line = (f"{found[1]}, at {found[3]}", int(found[2])) if found else (str(error), line_at(data, len(data)))
        raise PluginError(f"not valid TOML: {what}", path=path, line=line) from error


def line_of(path: str, *keys: str) -> int | None:
    """The line of a TOML file in which the table or value begins that these keys lead to; None if it has none.

    It is the first line with which what stands above it, and it, has the keys: so in whatever way it is written."""
    import tomllib

    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return None

    def has_keys(count: int) -> bool | None:
        """Whether so many lines have them; None if they do not end where a value does."""
        try:
            found = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            return None
        for key in keys:
            if not isinstance(found, dict) or key not in found:
                return False
            found = found[key]
        return True

    without, with_them = 0, len(lines)
    if not has_keys(with_them):
        return None
    while with_them - without > 1:
        middle = (without + with_them) // 2
        tried = (*range(middle, with_them), *range(middle - 1, without, -1))  # what ends within a value says nothing
        count, has = next(((count, has) for count in tried if (has := has_keys(count)) is not None), (0, None))
        if has is None:
            break
        without, with_them = (without, count) if has else (count, with_them)
    while without < with_them - 1 and lines[without].partition("#")[0].strip() == "":
        without += 1
    return without + 1


def place_of(source: Config | str | None, plugin: str, *keys: str) -> tuple[str, int | None] | None:
    """The file, and the line, of a plugin's table or of something in it; None if there is no file."""
    if not isinstance(source, str):
        return None
    return source, line_of(source, "plugins", plugin, *keys) or line_of(source, plugin, *keys)


def settings_of(plugin: str, path: str | None, config: Config, source: Config | str | None) -> Config:
    """The plugin's table; the keys that are the core's own are checked here, all others are the plugin's affair."""
    table = config.get(plugin, {})
    wrong = None
    where: tuple[str, ...] = ()
    if not isinstance(table, Mapping):
        wrong = f"its config must be a table, and is {table!r}"
    else:
        timeout, on_error = table.get("hold_timeout", 0), table.get("on_error", "fail")
        if type(timeout) not in (int, float) or not 0 <= timeout <= 1e9:
            wrong, where = f"hold_timeout in its config must be a number of seconds, or 0 for none, and is {timeout!r}", OWN[:1]
        elif on_error not in ("fail", "continue"):
            wrong, where = f'on_error in its config must be "fail" or "continue", and is {on_error!r}', OWN[1:]
        for name in table:
            close = None if name in OWN else close_to(str(name), OWN, 0.8)
            if close:
                _log.warning("plugin %s: its config has %s; did you mean %s?", plugin, name, close)
            if name in ("py", "so") and isinstance(table[name], Mapping):
                _log.warning("plugin %s: its config has a table %s; did you mean [plugins.%s]?", plugin, name, plugin)
    if wrong:
        file, line = place_of(source, plugin, *where) or (path, None)
        raise PluginError(wrong, plugin=plugin, path=file, line=line)
    return MappingProxyType(Settings(plugin, table))
