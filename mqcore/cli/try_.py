"""`mqcore try`: one mail, or those of a mailbox, through plugins, step by step; nothing is written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..errors import PluginError
from ..mail.report import OK, SOME_FAILED
from ..testing.clock import Clock
from ..testing.mail import make_mail
from ..testing.steps import Mq
from ..testing.trial import STAGES, Trial, try_mail
from .plugins import load, loading, printing_to_standard_error, tell_what_is_missing
from .trying import Subject, Summary, lines_of, one_line, read_mails

if TYPE_CHECKING:
    from . import Commands

EXIT_CODES = "Exit code: 0 accepted, 1 rejected or failed, 2 usage, 3 a plugin did not load."


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "try", parents=[loading()], help="run a mail through plugins, step by step; nothing is written", epilog=EXIT_CODES
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
        choices=("all", *STAGES),
        default="mq_smtp_in_message",
        help="the hook that is run, or all stages of SMTP up to it (default: mq_smtp_in_message)",
    )
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


def try_plugins(options: argparse.Namespace) -> int:
    if not options.paths and not options.entry_points:
        options.parser.error("which plugins, and which mail? Give the paths of plugins, and after them that of a mail")
    try:
        subjects, is_mailbox = read_mails(options.mail)
    except OSError as error:
        options.parser.error(f"cannot read {options.mail}: {error.strerror}")
    summary = Summary()
    with printing_to_standard_error():
        output = list(_run(options, subjects, summary, is_mailbox))
    for line in output:
        print(line)
    if (is_mailbox or options.repeat > 1) and not options.json:
        for line in summary.lines():
            print(line)
    sys.stdout.flush()
    return SOME_FAILED if summary.refused else OK


def _run(options: argparse.Namespace, subjects: Iterable[Subject], summary: Summary, is_mailbox: bool) -> Iterator[str]:
    with load(options, *options.paths) as plugins:
        tell_what_is_missing(options, plugins, options.paths)
        if not len(plugins):
            raise PluginError("there is nothing to try")
        with Clock(real_time=options.clock == "real") as clock:
            mq = Mq(clock, plugins)
            try:
                for number, subject in enumerate(subjects, 1):
                    for _ in range(options.repeat):
                        trial = _try(options, mq, subject)
                        summary.add(trial)
                    if options.json:
                        yield json.dumps(trial.as_dict())
                    elif is_mailbox:
                        yield one_line(number, subject, trial)
                    else:
                        yield from lines_of(trial)
                    if options.diff and not options.json:
                        yield from trial.diff().splitlines()
            finally:
                mq.abort()


def _try(options: argparse.Namespace, mq: Mq, subject: Subject) -> Trial:
    sender = options.from_address if options.from_address is not None else subject.sender
    mail = make_mail(
        subject.mime,
        envelope="sender@example.org" if sender is None else sender,
        to=options.to_address,
        peer=options.peer,
        helo=options.helo,
    )
    return try_mail(mq, mail, STAGES if options.stage == "all" else (options.stage,))
