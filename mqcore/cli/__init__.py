"""The command `mqcore`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from .. import PluginError
from ..hooks import close_to
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

    _in_pieces = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.suggest_on_error = False  # of CPython 3.15, in other words than those below

    def parse_known_args(  # type: ignore[override]  # of its overloads, argparse itself calls this one
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Options may stand between the other arguments, and what is unknown is told by the command that was given it."""
        if self._subparsers is not None or self._in_pieces:
            return super().parse_known_args(args, namespace)
        if self._get_positional_actions():
            options, unknown = self._parse_intermixed(args, namespace)
        else:  # which takes half as long
            options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(map(self._meant, unknown))}")
        return options, unknown

    def _parse_intermixed(
        self, args: Sequence[str] | None, namespace: argparse.Namespace | None
    ) -> tuple[argparse.Namespace, list[str]]:
        self._in_pieces = True  # argparse parses options and the rest by calling `parse_known_args` again
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._in_pieces = False

    def _meant(self, unknown: str) -> str:
        """What to write in place of an argument that the command does not have."""
        known = self._option_string_actions
        if unknown.startswith("-"):
            close = close_to(unknown.partition("=")[0], known)
            return f"; did you mean {close}?" if close else ""
        return f"; did you mean --plugins {unknown}?" if "--plugins" in known and os.path.exists(unknown) else ""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong and re.search("[./]", wrong[1]):
            for option in re.findall(r"--[\w-]+ PATH", self.format_usage()):
                message += f"; did you mean {option.removesuffix('PATH')}{wrong[1]}?"
        elif wrong and (close := close_to(wrong[1], re.findall(r"[\w-]+", wrong[2]))):
            message += f"; did you mean {close}?"
        elif message.endswith("required: COMMAND"):
            message += f"; {self.prog} --help lists them"
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """That of the whole command; where `command` is one, of that one only: the modules of all take a while to load."""
    parser = Parser(prog="mqcore", description="Move mail through plugins.", epilog=run.EXIT_CODES)
    about.add_to(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in [command] if command in COMMANDS else COMMANDS:
        importlib.import_module(f".{COMMANDS[name]}", __package__).add_to(commands)
    return parser
