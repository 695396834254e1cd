"""Where the options of `mqcore run` come from: the command line wins over the environment, MQCORE_NAME, and that over the table
`[run]` of the TOML file that `--config` or MQCORE_CONFIG names."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from ..hooks import close_to
from ..mail.places import without_login
from ..plugins._config import line_of, read_toml
from ..server.durations import parse_duration
from .output import complain

T = TypeVar("T")

TABLE = "run"
PREFIX = "MQCORE_"
COMMAND_LINE = "command line"
DEFAULT = "default"

YES = ("1", "true", "yes", "on")
NO = ("0", "false", "no", "off", "")


class Setting(NamedTuple):
    """A value of an option, and where it came from."""

    name: str
    """Without its dashes."""
    value: Any
    origin: str
    """COMMAND_LINE, DEFAULT, the name of a variable, or file and line."""
    written: Any = None
    """As somebody wrote it."""

    @property
    def is_chosen(self) -> bool:
        """Whether anybody chose it."""
        return self.origin != DEFAULT


def count(text: str) -> int:
    """The type of options that are numbers."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return min(int(text), sys.maxsize)


def processes(text: str) -> int:
    """That of an option that is a number of processes, or `auto`: one for each core that may be used."""
    if text != "auto":
        return count(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse`, which raises ValueError, in the way that argparse wants to be told of mistakes."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


duration = argument(parse_duration)
"""The type of options that are times; seconds."""


def parse_ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{text!r} is no number from 0 to 1")
    return ratio


ratio = argument(parse_ratio)
"""The type of options that are a part of all."""


class Options:
    """Those of a parser, whose values may come from elsewhere too. To be made when the parser has all of them."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._actions = {_name(action): action for action in parser._actions if action.option_strings and action.dest != "help"}
        self._defaults = {name: action.default for name, action in self._actions.items()}
        self._required = [name for name, action in self._actions.items() if action.required]
        for action in self._actions.values():
            action.default, action.required = argparse.SUPPRESS, False  # what is not given is not in the namespace

    def settle(self, options: argparse.Namespace) -> dict[str, Setting]:
        """The settings by name, read anew. Tells the parser of mistakes, which ends the command."""
        config = self._config(options)
        table = self._table(options, config.value)
        settings = {"config": config}
        for name, action in self._actions.items():
            if name != "config":
                settings[name] = self._setting(options, name, action, config.value, table)
        missing = [f"--{name}" for name in self._required if not settings[name].is_chosen]
        if missing:
            options.parser.error(f"the following arguments are required: {', '.join(missing)}")
        return settings

    def settled(self, options: argparse.Namespace) -> argparse.Namespace:
        """With the attributes that argparse would have made of them; `settings`; and `given`, what it was before."""
        settings = self.settle(options)
        settled = argparse.Namespace(**vars(options), settings=settings, given=options)
        for name, action in self._actions.items():
            setattr(settled, action.dest, settings[name].value)
        for variable in sorted(each for each in os.environ if each.startswith(PREFIX)):
            name = variable.removeprefix(PREFIX).lower().replace("_", "-")
            near = None if name in self._actions else close_to(name, self._actions, 0.8)
            if near:
                complain(f"{variable} is no option; did you mean {_variable(near)}?", 0)
        return settled

    def in_file(self, options: argparse.Namespace, path: str) -> argparse.Namespace:
        """As `settled`, but of the file alone. It has to have what it may have; what it does not have need not be there."""
        table = self._table(options, path)
        settings = {}
        for name, action in self._actions.items():
            if name in table:
                value = self._from_file(options, name, action, path, table[name])
                settings[name] = Setting(name, value, _where(path, name), table[name])
            else:
                settings[name] = self._by_default(name, action)
        values = {action.dest: settings[name].value for name, action in self._actions.items()}
        return argparse.Namespace(**values, settings=settings, parser=options.parser)

    def _config(self, options: argparse.Namespace) -> Setting:
        if "config" in options and options.config is not None:
            return Setting("config", options.config, COMMAND_LINE)
        variable = _variable("config")
        if os.environ.get(variable):
            return Setting("config", os.environ[variable], variable)
        return Setting("config", None, DEFAULT)

    def _setting(
        self, options: argparse.Namespace, name: str, action: argparse.Action, path: str | None, table: Mapping[str, Any]
    ) -> Setting:
        if action.dest in options:
            return Setting(name, getattr(options, action.dest), COMMAND_LINE)
        variable = _variable(name)
        if variable in os.environ:
            value = self._from_text(options, variable, action, os.environ[variable])
            return Setting(name, value, variable, os.environ[variable])
        if name in table:
            assert path is not None
            value = self._from_file(options, name, action, path, table[name])
            return Setting(name, value, _where(path, name), table[name])
        return self._by_default(name, action)

    def _by_default(self, name: str, action: argparse.Action) -> Setting:
        default = self._defaults[name]
        value = action.type(default) if isinstance(default, str) and callable(action.type) else default
        return Setting(name, value, DEFAULT, default)

    def _table(self, options: argparse.Namespace, path: str | None) -> dict[str, Any]:
        table = read_toml(path).get(TABLE, {}) if path else {}
        if not isinstance(table, dict):
            options.parser.error(f"{_where(path, None)}: {TABLE} is a table of options, not {table!r}; write [{TABLE}]")
        known = self._actions.keys() - {"config"}
        for name in table:
            if name not in known:
                near = close_to(name, known)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
                options.parser.error(
                    f"{_where(path, name)}: [{TABLE}] has {name}, which is no option that it may have; {hint}"
                )
        return table

    def _from_file(self, options: argparse.Namespace, name: str, action: argparse.Action, path: str, value: Any) -> Any:
        if not _fits(action, value):
            options.parser.error(f"{_where(path, name)}: {name} in [{TABLE}] is {_kind(action)}, not {value!r}")
        if isinstance(value, bool):
            return value
        if isinstance(action, argparse._AppendAction):
            return [value] if isinstance(value, str) else list(value)
        return self._converted(options, f"{_where(path, name)}: {name} in [{TABLE}]", action, str(value))

    def _from_text(self, options: argparse.Namespace, variable: str, action: argparse.Action, text: str) -> Any:
        if action.nargs == 0:
            if text.lower() not in YES + NO:
                options.parser.error(f"{variable} is 1 or 0, not {text!r}")
            return text.lower() in YES
        if isinstance(action, argparse._AppendAction):
            return [path for path in text.split(os.pathsep) if path]
        if action.choices is not None and text not in action.choices:
            options.parser.error(f"{variable} is {_kind(action)}, not {text!r}")
        return self._converted(options, variable, action, text)

    def _converted(self, options: argparse.Namespace, where: str, action: argparse.Action, text: str) -> Any:
        try:
            return action.type(text) if callable(action.type) else text
        except argparse.ArgumentTypeError as error:
            options.parser.error(f"{where}: {error}")


def shown(setting: Setting) -> str:
    """As a line of the table `[run]`, and where it came from. Names and passwords in a URL are not shown."""
    value = setting.value if setting.written is None else setting.written
    if not isinstance(value, (bool, int, float, list)):
        value = without_login(str(value))
    return f"{setting.name} = {json.dumps(value, ensure_ascii=False)}  # {setting.origin}"


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1].removeprefix("--")


def _variable(name: str) -> str:
    return PREFIX + name.upper().replace("-", "_")


def _fits(action: argparse.Action, value: object) -> bool:
    if action.type is count:
        return type(value) is int and value >= 1
    if action.choices is not None:
        return value in action.choices
    if action.nargs == 0:
        return isinstance(value, bool)
    if isinstance(action, argparse._AppendAction) and isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, str) or (action.type in (duration, ratio, processes) and type(value) in (int, float))


def _kind(action: argparse.Action) -> str:
    if action.type is count:
        return "a whole number above 0"
    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))}"
    if action.nargs == 0:
        return "true or false"
    return "a text, or a list of them" if isinstance(action, argparse._AppendAction) else "a text"


def _where(path: str | None, name: str | None) -> str:
    """The file, and the line of an option in its table."""
    keys = (TABLE,) if name is None else (TABLE, name)
    line = line_of(str(path), *keys)
    return str(path) if line is None else f"{path}:{line}"
