"""`mqcore try`: one mail, or those of a mailbox, through plugins, step by step; nothing is written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..testing.stages import HOOKS
from .hooks import hooks_option
from .plugins import loading

if TYPE_CHECKING:
    from . import Commands

EXIT_CODES = "Exit code: 0 accepted, 1 rejected, failed, or an error afterwards, 2 usage, 3 a plugin did not load."


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "try",
        parents=[loading(), hooks_option()],
        help="run a mail through plugins, step by step; nothing is written",
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("paths", metavar="PLUGIN", nargs="*", help="file, package, or directory of plugins")
    add("mail", metavar="MAIL", help="file with a mail, mbox, or Maildir; - for standard input")
    add("--from-address", metavar="A", help="the sender (default: sender@example.org, or what the mbox says)")
    add("--to-address", metavar="B", default="recipient@example.net", help="the recipient (default: recipient@example.net)")
    add("--peer", metavar="IP", default="192.0.2.1", help="the client's address (default: 192.0.2.1)")
    add("--helo", metavar="NAME", default="client.example.org", help="its name for itself (default: client.example.org)")
    add(
        "--stage",
        metavar="all|HOOK",
        choices=("all", *HOOKS),
        default="mq_smtp_in_message",
        help="the hook that is run, or all stages of SMTP up to mq_smtp_in_message (default: mq_smtp_in_message); "
        f"HOOK is one of {', '.join(HOOKS)}",
    )
    add("--login", metavar="NAME:PASSWORD", type=_login, help="log in at mq_smtp_in_authenticate; with --stage all, under TLS")
    add("--clock", choices=("virtual", "real"), default="virtual", help="let timers come at once, or in their time")
    add("--json", action="store_true", help="print an object for each mail, in a line")
    add("--diff", action=argparse.BooleanOptionalAction, default=False, help="print what changed in the mail, as a diff")
    add("--repeat", metavar="N", type=_count, default=1, help="run each mail so often, and print a table of the times")
    parser.set_defaults(command=try_plugins, parser=parser)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of times")
    return number


def _login(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} has no colon between a name and a password")
    return name, password


def try_plugins(options: argparse.Namespace) -> int:
    from . import trying  # a start of `run` need not wait for the kit

    return trying.try_plugins(options)
