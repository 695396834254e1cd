"""What places take beside a URL: from the command line, and from the table `[run]` of the TOML file."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..mail.base import Option
from ..mail.places import Location
from ..mail.places import options as options_of_places
from ..plugins._config import read_toml

TABLE = "run"


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return min(int(text), sys.maxsize)


def add_to(parser: argparse.ArgumentParser) -> None:
    for option, places in options_of_places().items():
        how: dict[str, Any] = {"action": "store_true"}
        if option.is_number:
            how = {"metavar": option.metavar, "type": count}
        elif option.metavar is not None or option.choices is not None:
            how = {"metavar": option.metavar, "choices": option.choices}
        parser.add_argument(f"--{option.name}", help=f"{option.help} ({', '.join(places)})", **how)


class _Raising(argparse.ArgumentParser):
    """Tells of mistakes by ValueError, as they must not end a server."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def again(options: argparse.Namespace, *places: Location[Any]) -> Callable[[], list[dict[str, Any]]]:
    """`options_for`, to be called when the file may say something else. What it has to say of a mistake is a ValueError, and
    paths are where they are now."""
    here = argparse.Namespace(**vars(options))
    here.parser = _Raising(add_help=False)
    here.folder = os.getcwd()
    here.config = options.config and os.path.abspath(options.config)
    return lambda: options_for(here, *places)


def options_for(options: argparse.Namespace, *places: Location[Any]) -> list[dict[str, Any]]:
    """Those that each place takes. One that is given for places that are not there is wrong usage; in the file, which may be
    for several runs, it is left alone."""
    given = _from_file(options)
    for option, kinds in options_of_places().items():
        if value := getattr(options, _attribute(option)):
            given[_attribute(option)] = value
            if not any(option in place.kind.options for place in places):
                options.parser.error(f"--{option.name} is for {' and '.join(filter(None, (', '.join(kinds[:-1]), kinds[-1])))}")
    for option in options_of_places():
        if option.metavar == "FILE" and _attribute(option) in given:
            folder = getattr(options, "folder", "")
            given[_attribute(option)] = os.path.abspath(os.path.join(folder, given[_attribute(option)]))  # a plugin may change the current directory
    chosen = []
    for place in places:
        names = map(_attribute, place.kind.options)
        chosen.append({name: given[name] for name in names if name in given})
        try:
            place.kind.check(place.path, chosen[-1])
        except ValueError as error:
            options.parser.error(str(error))
    return chosen


def _attribute(option: Option) -> str:
    return option.name.replace("-", "_")


def _from_file(options: argparse.Namespace) -> dict[str, Any]:
    table = read_toml(options.config).get(TABLE, {}) if options.config else {}
    known = {option.name: option for option in options_of_places()}
    if not isinstance(table, Mapping):
        options.parser.error(f"{options.config}: {TABLE} is a table of options, not {table!r}; write [{TABLE}]")
    given = {}
    for name, value in table.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            options.parser.error(f"{options.config}: [{TABLE}] has {name}, which is no option that it may have; {hint}")
        if not _fits(known[name], value):
            options.parser.error(f"{options.config}: {name} in [{TABLE}] is {_kind(known[name])}, not {value!r}")
        if value is not False:
            given[_attribute(known[name])] = value
    return given


def _fits(option: Option, value: object) -> bool:
    if option.is_number:
        return type(value) is int and value >= 1
    if option.choices is not None:
        return value in option.choices
    return isinstance(value, bool) if option.metavar is None else isinstance(value, str)


def _kind(option: Option) -> str:
    if option.is_number:
        return "a whole number above 0"
    if option.choices is not None:
        return f"one of {', '.join(option.choices)}"
    return "true or false" if option.metavar is None else "a text"
