"""`mqcore check`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .. import PluginError
from ..mail.report import BAD_PLUGIN, OK
from .output import complain
from .plugins import load, loading

if TYPE_CHECKING:
    from . import Commands


def add_to(commands: Commands) -> None:
    check = commands.add_parser("check", parents=[loading()], help="load plugins and say what is wrong with them")
    check.add_argument("paths", metavar="PLUGIN", nargs="+", help="file, package, or directory of plugins")
    check.set_defaults(command=check_plugins)


def check_plugins(options: argparse.Namespace) -> int:
    code = OK
    with load(options) as plugins:
        for path in options.paths:
            before = {plugin.name for plugin in plugins}
            try:
                plugins.load(path)
            except PluginError as error:
                code = complain(error, BAD_PLUGIN)
                continue
            for plugin in plugins:
                if plugin.name not in before:
                    print(f"{plugin.name}: {', '.join(plugin.hooks) or 'no hooks'}")
    return code
