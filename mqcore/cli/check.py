"""`mqcore check`."""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import TYPE_CHECKING

import uvloop

from .. import Context, Dispatcher, PluginError, Plugins
from ..mail import Connection, Mail
from ..mail.report import BAD_PLUGIN, OK
from . import run
from .configuration import Options
from .hooks import hooks_option
from .options import Raising
from .output import complain
from .plugins import load, loading, printing_to_standard_error, tell_what_is_missing

if TYPE_CHECKING:
    from . import Commands


def add_to(commands: Commands) -> None:
    parents = [loading(), hooks_option()]
    check = commands.add_parser("check", parents=parents, help="load plugins and say what is wrong with them")
    check.add_argument("paths", metavar="PLUGIN", nargs="*", help="file, package, or directory of plugins")
    check.set_defaults(command=check_plugins, parser=check)


def check_plugins(options: argparse.Namespace) -> int:
    if not options.paths and not options.entry_points and not options.config:
        options.parser.error("which plugins? Give paths, or --entry-points, or --config")
    code = OK
    paths = options.paths
    if options.config:
        in_file = _check_file(options)
        paths = paths or in_file
    with printing_to_standard_error(), load(options, hooks=options.hooks) as plugins:
        for path in paths:
            try:
                plugins.load(path)
            except PluginError as error:
                code = complain(error, BAD_PLUGIN)
        if not code or len(plugins):
            tell_what_is_missing(options, plugins, [] if code else paths)
        code = _begin(plugins) or code
        from ..plugins._advice import advice_for  # takes its time, which other commands need not wait for

        for plugin in plugins:
            for advice in advice_for(plugin, dir(Mail), dir(Context), dir(Connection)):
                complain(advice, OK)
        lines = [f"{plugin.name}: {', '.join(plugin.hooks) or 'no hooks'}" for plugin in plugins]
    for line in lines:
        print(line)
    return code


def _check_file(options: argparse.Namespace) -> list[str]:
    """The plugins that the file names. Tells the parser of what is wrong with its options, and of those that do not go
    together, as a run would."""
    settled = Options(run.options()).in_file(options, options.config)
    plugins: list[str] = settled.plugins
    settled.parser = Raising(add_help=False)
    try:
        run.fit_together(settled)
    except ValueError as error:
        names = [*re.findall(r"--([a-z][a-z-]*)", str(error)), "to", "from"]  # what is not named is about the places
        chosen = [setting.origin for name in names if (setting := settled.settings.get(name)) and setting.is_chosen]
        options.parser.error(f"{chosen[0] if chosen else options.config}: {error}")
    return plugins


def _begin(plugins: Plugins) -> int:
    """Run `mq_context_initialize` of each; those that fail are taken out."""
    code = OK
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        while True:
            try:
                Dispatcher(plugins, runner.get_loop()).close()
            except PluginError as error:
                code = complain(error, BAD_PLUGIN)
                if not any(plugin.name == error.plugin for plugin in plugins):
                    return code
                plugins.remove(str(error.plugin))
            else:
                return code
