"""What `mqcore try` does: the mails it reads, their way through the plugins, and how it says what happened."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .. import Plugins
from ..errors import PluginError
from ..hooks import MAILERQ_HOOKS
from ..mail import MaildirSource, MboxSource, Reader, SourceError
from ..mail.report import OK, SOME_FAILED
from ..server.durations import write_duration
from ..testing.aftermath import Aftermath, Late
from ..testing.clock import Clock
from ..testing.mail import make_mail
from ..testing.stages import HOOKS, STAGES, STAGES_WITH_LOGIN
from ..testing.steps import Mq
from ..testing.trial import Done, Stage, Trial, try_mail
from .output import complain
from .plugins import load, printing_to_standard_error, tell_what_is_missing


class Subject(NamedTuple):
    """A mail. `sender`: None if it is not known; `name`: to tell it from others."""

    mime: bytes
    sender: str | None
    name: str


def read_mails(path: str) -> tuple[Iterable[Subject], bool]:
    """The mails there, and whether it is a mailbox. Raises OSError, SourceError."""
    if path == "-":
        return [Subject(sys.stdin.buffer.read(), None, "-")], False
    if os.path.isdir(path):
        return _in_mailbox(MaildirSource(path)), True
    with open(path, "rb") as file:
        if file.read(5) == b"From ":
            return _in_mailbox(MboxSource(path)), True
        file.seek(0)
        return [Subject(file.read(), None, path)], False


def _in_mailbox(source: Reader) -> Iterator[Subject]:
    with contextlib.closing(source):
        for number, origin in enumerate(source, 1):
            name = str(number) if origin.file is None else os.path.basename(origin.file)
            yield Subject(origin.mime, origin.envelope, name)


def lines_of(stage: Stage) -> Iterator[str]:
    """All that happened, for people."""
    yield f"{stage.hook}  for {stage.about}" if stage.about else stage.hook
    width = max((len(call.plugin) for call in stage.calls), default=0) + 2
    times = [_time(call) for call in stage.calls]
    room = max((len(time) for call, time in zip(stage.calls, times, strict=True) if call.changes or call.error), default=0)
    for call, time in zip(stage.calls, times, strict=True):
        notes = [*call.changes, *filter(None, [call.error])] or [""]
        yield f"  {call.plugin:{width}}{call.verdict:8}  {time:{room}}  {notes[0]}".rstrip()
        for note in notes[1:]:
            yield f"  {'':{width}}{'':8}  {'':{room}}  {note}"
    if not stage.calls:
        yield "  no plugin has this hook"
    if stage.not_called:
        yield f"  {'':{width}}not called: {', '.join(stage.not_called)}"


def _time(call: Done) -> str:
    if call.held is None:
        return write_duration(call.seconds)
    return f"held {write_duration(call.held)}" + (f" ({call.why})" if call.why else "")


def one_line(number: int, subject: Subject, trial: Trial) -> str:
    """What became of one mail of a mailbox."""
    changes = [change for stage in trial.stages for call in stage.calls for change in call.changes]
    return f"{number:6}  {subject.name[:40]:40}  {trial.reply}" + (f"  ({len(changes)} changes)" if changes else "")


@dataclass
class Summary:
    """Of all mails. `refused`: how many were rejected or failed; `late`: what went wrong when they were over."""

    mails: int = 0
    refused: int = 0
    late: list[Late] = field(default_factory=list)
    rows: dict[tuple[str, str], list[Done]] = field(default_factory=dict)

    def add(self, trial: Trial) -> None:
        self.mails += 1
        self.refused += not trial.is_accepted
        for stage in trial.stages:
            for call in stage.calls:
                self.rows.setdefault((stage.hook, call.plugin), []).append(call)

    def lines(self) -> Iterator[str]:
        """A table: a row for each hook of a plugin."""
        yield ""
        yield f"{self.mails - self.refused} accepted, {self.refused} rejected or failed"
        header = ("hook", "plugin", "calls", "held", "mean", "longest", "CONTINUE", "COMPLETE", "RETRY", "FAIL")
        rows = [header, *(_row(hook, plugin, calls) for (hook, plugin), calls in sorted(self.rows.items()))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        for row in rows:
            cells = (text.ljust(width) if place < 2 else text.rjust(width)
                     for place, (text, width) in enumerate(zip(row, widths, strict=True)))
            yield "  ".join(cells).rstrip()


def _row(hook: str, plugin: str, calls: list[Done]) -> tuple[str, ...]:
    times = [call.seconds for call in calls]
    counts = (sum(call.verdict == verdict for call in calls) for verdict in ("CONTINUE", "COMPLETE", "RETRY", "FAIL"))
    held = sum(call.held is not None for call in calls)
    mean, longest = write_duration(sum(times) / len(times)), write_duration(max(times))
    return (hook, plugin, str(len(calls)), str(held), mean, longest, *map(str, counts))


def try_plugins(options: argparse.Namespace) -> int:
    if not options.paths and not options.entry_points:
        options.parser.error("which plugins, and which mail? Give the paths of plugins, and after them that of a mail")
    try:
        subjects, is_mailbox = read_mails(options.mail)
    except OSError as error:
        options.parser.error(f"cannot read {options.mail}: {error.strerror}")
    except SourceError as error:
        options.parser.error(f"{error}; the mail comes last, after the plugins")
    summary = Summary()
    with printing_to_standard_error() as say:
        _run(options, subjects, summary, is_mailbox, say)
        if options.json:
            if summary.late:
                say(json.dumps({"afterwards": [late._asdict() for late in summary.late]}))
        else:
            for line in summary.lines() if is_mailbox or options.repeat > 1 else ():
                say(line)
            for line in ("afterwards", *(f"  {late}" for late in summary.late)) if summary.late else ():
                say(line)
    return SOME_FAILED if summary.refused or summary.late else OK


def _run(
    options: argparse.Namespace, subjects: Iterable[Subject], summary: Summary, is_mailbox: bool, say: Callable[[str], None]
) -> None:
    hooks = {spec.name: spec for spec in (*MAILERQ_HOOKS, *(options.hooks or ()))}  # those of one's own beside the stages
    with load(options, *options.paths, hooks=hooks.values()) as plugins:
        tell_what_is_missing(options, plugins, options.paths)
        if not len(plugins):
            raise PluginError("there is nothing to try")
        _tell_what_is_not_run(plugins, options.stage)
        with Clock(real_time=options.clock == "real") as clock, contextlib.ExitStack() as opened:
            mq = Mq(clock, plugins)
            opened.callback(mq.abort)
            aftermath = opened.enter_context(contextlib.closing(Aftermath(mq)))
            for number, subject in enumerate(subjects, 1):
                for left in reversed(range(options.repeat)):
                    shows_stages = not (left or is_mailbox or options.json)
                    trial = _try(options, mq, subject, _telling(say) if shows_stages else lambda stage: None)
                    summary.add(trial)
                if options.json:
                    say(json.dumps(trial.as_dict()))
                else:
                    say(one_line(number, subject, trial) if is_mailbox else f"reply {trial.reply}")
                    for line in trial.diff().splitlines() if options.diff else ():
                        say(line)
            summary.late = aftermath.wait()


def _tell_what_is_not_run(plugins: Plugins, stage: str) -> None:
    others = [hook for hook in HOOKS if plugins.order(hook)]
    if others and stage not in ("all", *others):
        complain(f"no plugin has {stage}; there is {', '.join(others)}: give --stage all, or --stage HOOK", OK)
    for hook in plugins.hooks:
        if hook not in HOOKS and (order := plugins.order(hook)):
            complain(
                f"{hook} of {', '.join(order)} is not run, as it is no stage of a mail; test it with the fixture mq, as "
                f"mq.run({hook!r}, message)",
                OK,
            )


def _telling(say: Callable[[str], None]) -> Callable[[Stage], None]:
    def tell(stage: Stage) -> None:
        for line in lines_of(stage):
            say(line)

    return tell


def _try(options: argparse.Namespace, mq: Mq, subject: Subject, tell: Callable[[Stage], None]) -> Trial:
    sender = options.from_address if options.from_address is not None else subject.sender
    mail = make_mail(
        subject.mime,
        envelope="sender@example.org" if sender is None else sender,
        to=options.to_address,
        peer=options.peer,
        helo=options.helo,
    )
    stages = STAGES if options.login is None else STAGES_WITH_LOGIN
    chosen = stages if options.stage == "all" else (options.stage,)
    return try_mail(mq, mail, chosen, options.login or ("user", "password"), tell)
