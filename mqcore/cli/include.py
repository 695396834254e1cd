"""`mqcore include`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .. import get_include
from ..mail.report import OK

if TYPE_CHECKING:
    from . import Commands


def add_to(commands: Commands) -> None:
    include = commands.add_parser("include", help="print the folder of mqcore.h, for compiling native plugins")
    include.set_defaults(command=print_include)


def print_include(options: argparse.Namespace) -> int:
    print(get_include())
    return OK
