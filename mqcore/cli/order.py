"""`mqcore order`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..mail.report import OK
from .hooks import hooks_option
from .plugins import choosing, load, printing_to_standard_error, tell_what_is_missing

if TYPE_CHECKING:
    from . import Commands


def add_to(commands: Commands) -> None:
    order = commands.add_parser("order", parents=[choosing(), hooks_option()], help="print the plugins of each hook, in order")
    order.set_defaults(command=print_order)


def print_order(options: argparse.Namespace) -> int:
    lines = []
    with printing_to_standard_error(), load(options, *options.plugins, hooks=options.hooks) as plugins:
        tell_what_is_missing(options, plugins, options.plugins)
        paths = {plugin.name: plugin.path or "an entry point" for plugin in plugins}
        for hook in plugins.hooks:
            if names := plugins.order(hook):
                lines += [hook, *(f"    {name}  ({paths[name]})" for name in names)]
    for line in lines:
        print(line)
    return OK
