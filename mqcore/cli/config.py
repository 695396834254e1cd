"""`mqcore config`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..mail.report import OK
from . import run
from .configuration import Options, shown

if TYPE_CHECKING:
    from . import Commands


def add_to(commands: Commands) -> None:
    config = commands.add_parser(
        "config", parents=[run.options()], help="print what is in force for mqcore run, and where each value came from"
    )
    config.set_defaults(command=print_settings, parser=config, known=Options(config))


def print_settings(options: argparse.Namespace) -> int:
    settings = options.known.settled(options).settings
    print("[run]")
    for setting in settings.values():
        if setting.name == "config":
            if setting.value:
                print(f"# the file is {setting.value}, of {setting.origin}")
        elif setting.is_chosen or setting.value not in (None, False, []):
            print(shown(setting))
    return OK
