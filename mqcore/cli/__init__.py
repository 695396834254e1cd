"""The command `mqcore`."""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from .. import PluginError
from ..mail.errors import SinkError, SourceError
from ..mail.report import BAD_PLUGIN, OK, UNREACHABLE, USAGE
from . import about, run
from .output import StandardError, begin_log, complain, drop, open_standard_files

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

COMMANDS = {
    "run": "run",
    "ctl": "ctl",
    "top": "top",
    "order": "order",
    "new": "new",
    "check": "check",
    "try": "try_",
    "config": "config",
    "include": "include",
}
"""The commands, in the order of the help, and the module of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    open_standard_files()
    if about.prints_version(sys.argv[1:] if arguments is None else arguments):
        return OK
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser(given[0] if given else None).parse_args(given)
    options.arguments = given
    handler = StandardError()
    logging.basicConfig(handlers=[handler])
    begin_log("text", None)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()  # here, where it is seen when nobody reads it
        return code
    except PluginError as error:
        return complain(error, BAD_PLUGIN)
    except (SourceError, SinkError) as error:
        return complain(error, UNREACHABLE)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        drop(1)  # as in `mqcore order | head`
        return 128 + signal.SIGPIPE
    finally:
        handler.tell_suppressed()


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, which else would stand below all options there are."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search("invalid choice: '([^']*)'", message)
        if wrong and re.search("[./]", wrong[1]):
            for option in re.findall(r"--[\w-]+ PATH", self.format_usage()):
                message += f"; did you mean {option.removesuffix('PATH')}{wrong[1]}?"
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """That of the whole command; where `command` is one, of that one only: the modules of all take a while to load."""
    parser = Parser(prog="mqcore", description="Move mail through plugins.", epilog=run.EXIT_CODES)
    about.add_to(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in [command] if command in COMMANDS else COMMANDS:
        importlib.import_module(f".{COMMANDS[name]}", __package__).add_to(commands)
    return parser
