"""`mqcore order`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..mail.report import OK
from .plugins import choosing, load

if TYPE_CHECKING:
    from . import Commands


def add_to(commands: Commands) -> None:
    order = commands.add_parser("order", parents=[choosing()], help="print the plugins of each hook, in order")
    order.set_defaults(command=print_order)


def print_order(options: argparse.Namespace) -> int:
    with load(options, *options.plugins) as plugins:
        paths = {plugin.name: plugin.path for plugin in plugins}
        for hook in plugins.hooks:
            if names := plugins.order(hook):
                print(hook)
                for name in names:
                    print(f"    {name}  ({paths[name]})")
    return OK
