"""The options of the watchdog."""

from __future__ import annotations

import argparse
import logging

from .. import Dispatcher, Watchdog
from ..loop._reporter import log
from .configuration import duration


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watchdog",
        metavar="TIME",
        type=duration,
        default="500ms",
        help="tell, while it lasts, of what keeps the loop for longer; 0: never (default: 500ms)",
    )
    parser.add_argument(
        "--watchdog-abort",
        metavar="TIME",
        type=duration,
        help="end the process, with the stacks of all threads, when something keeps the loop for so long",
    )
    parser.add_argument(
        "--watchdog-stack",
        choices=("safe", "unsafe"),
        default="safe",
        help="unsafe: the stack at once, without Python's lock, which may crash the process: to hunt what keeps that",
    )


def watchdog_of(options: argparse.Namespace) -> Watchdog | None:
    """What they order; wrong usage ends the command."""
    abort = options.watchdog_abort or 0.0
    if not options.watchdog:
        if abort:
            options.parser.error("--watchdog-abort needs the watchdog; leave --watchdog 0 out")
        return None
    unsafe = options.watchdog_stack == "unsafe"
    try:
        return Watchdog(options.watchdog, abort=abort, unsafe_stack=unsafe)
    except ValueError as error:
        return options.parser.error(f"--watchdog: {error}")  # type: ignore[no-any-return]


def report_as(dispatcher: Dispatcher, log_format: str) -> None:
    """Its lines are as those of the log are now; it writes them without the log."""
    dispatcher._report_as(json=log_format == "json", warnings=log.isEnabledFor(logging.WARNING))
