"""What places take beside a URL."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from ..mail.base import Option
from ..mail.places import Location
from ..mail.places import options as options_of_places
from .configuration import COMMAND_LINE, count


def add_to(parser: argparse.ArgumentParser) -> None:
    for option, places in options_of_places().items():
        how: dict[str, Any] = {"action": "store_true"}
        if option.is_number:
            how = {"metavar": option.metavar, "type": count}
        elif option.metavar is not None or option.choices is not None:
            how = {"metavar": option.metavar, "choices": option.choices}
        parser.add_argument(f"--{option.name}", help=f"{option.help} ({', '.join(places)})", **how)


class Raising(argparse.ArgumentParser):
    """Tells of mistakes by ValueError, as they must not end a server."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def to_read_again(options: argparse.Namespace) -> Callable[[], argparse.Namespace]:
    """Gives options for `options_for`, when the file may say something else: what it has to say of a mistake is a ValueError
    then, and paths are where they are now."""
    parser, folder = Raising(add_help=False), os.getcwd()
    given = argparse.Namespace(**vars(options.given) | {"parser": parser})
    if options.config:
        given.config = os.path.abspath(options.config)
    return lambda: argparse.Namespace(settings=options.known.settle(given), parser=parser, folder=folder)


def options_for(options: argparse.Namespace, *places: Location[Any]) -> list[dict[str, Any]]:
    """Those that each place takes. One that is given on the command line for places that are not there is wrong usage; in the
    file and the environment, which may be for several runs, it is left alone."""
    given = {}
    for option, kinds in options_of_places().items():
        setting = options.settings[option.name]
        if not setting.value:
            continue
        given[_attribute(option)] = setting.value
        if setting.origin == COMMAND_LINE and not any(option in place.kind.options for place in places):
            options.parser.error(f"--{option.name} is for {' and '.join(filter(None, (', '.join(kinds[:-1]), kinds[-1])))}")
    folder = getattr(options, "folder", "")  # a plugin may change the current directory
    for option in options_of_places():
        if option.metavar == "FILE" and _attribute(option) in given:
            given[_attribute(option)] = os.path.abspath(os.path.join(folder, given[_attribute(option)]))
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
