"""One mail through the stages of a server, and what each plugin did with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..mail import Mail
from ..mail.timeline import Changes
from ..mail.verdicts import UNAVAILABLE
from ..server.durations import write_duration
from ..verdicts import FAIL
from .left import running_of
from .places import own_place
from .steps import Mq, Result, Step, diff_of

ACCEPTED, FAILED = "250 2.0.0 accepted", f"451 {UNAVAILABLE.text}"
WRONG_LOGIN = "535 5.7.8 login or password is wrong"
ANSWERS = {"mq_smtp_in_authenticate": "235 2.7.0 you are logged in"}
"""Of what is accepted, by hook, where it is not ACCEPTED."""
FAILURES = {
    "mq_smtp_in_connect": f"421 {UNAVAILABLE.text}",
    "mq_smtp_in_secure": f"421 {UNAVAILABLE.text}",
    "mq_smtp_in_authenticate": "454 4.7.0 logins cannot be checked now; try again later",
}
"""The same of a step that failed."""
SILENT = {"mq_smtp_in_close": "none: the connection is closed", "mq_smtp_out_sent": "none: the client was told already"}
"""Hooks after which nobody is told anything."""
DELIVERED = {"state": "message", "code": 250, "description": "2.0.0 ok"}
"""What the next server said, for `mq_smtp_out_sent`."""


@dataclass(frozen=True)
class Done:
    """What one plugin did. `seconds`: how long its hook took, really; `held`: how long it held the mail after that, by the
    clock, None if it did not; `why`: what it held it with, as `timer, 20-wait.py:2`."""

    plugin: str
    verdict: str
    seconds: float
    held: float | None
    why: str | None
    changes: tuple[str, ...]
    error: str | None


@dataclass(frozen=True)
class Stage:
    """`about`: whom it is about, None if nobody in particular."""

    hook: str
    about: str | None
    calls: tuple[Done, ...]
    not_called: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """`reply`: what a client would be told."""

    stages: tuple[Stage, ...]
    reply: str
    is_accepted: bool
    before: bytes
    after: bytes

    def diff(self) -> str:
        return diff_of(self.before, self.after)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without the mail."""
        stages = [asdict(stage) for stage in self.stages]
        return {"stages": stages, "reply": self.reply, "accepted": self.is_accepted}


def try_mail(
    mq: Mq,
    mail: Mail,
    stages: Sequence[str],
    login: tuple[str, str] = ("user", "password"),
    tell: Callable[[Stage], object] = lambda stage: None,
) -> Trial:
    """Run it through these, until one refuses it. All but the last are given a message of their own, without the mail's bytes
    before `mq_smtp_in_data`, as a server has it; what they put into `json` the mail has, too. `login`: name and password.
    `tell`: is told of each stage that is over."""
    before = mail.mime
    early = Mail(b"", connection=mail.connection)
    done: list[Stage] = []
    for hook in stages:
        message, about, args = _given(hook, mail, early, login)  # the client says it, whether or not a plugin asks for it
        if len(stages) > 1 and not mq.plugins.order(hook):
            continue
        stage, step = _run(mq, hook, message, about, args)
        done.append(stage)
        tell(stage)
        result = step.result()
        if hook in SILENT:
            return Trial(tuple(done), SILENT[hook], result.outcome is not FAIL, before, mail.mime)
        if (refusal := _refusal(hook, result)) is not None:
            return Trial(tuple(done), refusal, False, before, mail.mime)
        if message.discarded:
            return Trial(tuple(done), f"{ACCEPTED} (discarded)", True, before, mail.mime)
        if message is early:
            mail.json.update(early.json)
    return Trial(tuple(done), ANSWERS.get(stages[-1], ACCEPTED), True, before, mail.mime)


def _refusal(hook: str, result: Result) -> str | None:
    """What the client is told, if that is no success."""
    if result.outcome is FAIL:
        return FAILURES.get(hook, FAILED)
    if result.rejection is not None:
        return str(result.rejection)
    if hook == "mq_smtp_in_authenticate" and not result.mail.connection.authenticated:
        return WRONG_LOGIN
    return None


def _given(hook: str, mail: Mail, early: Mail, login: tuple[str, str]) -> tuple[Mail, str | None, tuple[Any, ...]]:
    """The message of a hook, whom it is about, and the other arguments."""
    match hook:
        case "mq_smtp_in_connect" | "mq_smtp_in_close":
            return early, None, ()
        case "mq_smtp_in_secure":
            assert early.connection is not None
            early.connection.tls = True
            return early, None, ()
        case "mq_smtp_in_authenticate":
            return early, login[0], login
        case "mq_smtp_out_sent":
            mail.json["results"] = [{"recipient": mail.recipient, **DELIVERED}]
            return mail, mail.recipient, ()
        case "mq_smtp_in_mailfrom":
            early.envelope = mail.envelope
            return early, mail.envelope, (mail.envelope or "",)
        case "mq_smtp_in_rcptto":
            early.envelope = mail.envelope
            early.recipient = mail.recipient
            return early, mail.recipient, (mail.recipient or "",)
        case "mq_smtp_in_data":
            early.envelope = mail.envelope
            early.json.pop("recipient", None)  # as there may be several
            early.recipients = list(mail.recipients)
            early.mime = mail.mime
            return early, None, (mail.mime,)
    return mail, mail.recipient, ()


class _Look:
    """Says what a plugin changed, and notes when it was done with it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._changes = Changes()
        self._last = 0.0

    def __call__(self, message: Any) -> list[str]:
        self.seconds.append(time.perf_counter() - self._last)
        changes = self._changes(message)
        self._last = time.perf_counter()
        return changes


def _run(mq: Mq, hook: str, message: Mail, about: str | None, args: tuple[Any, ...]) -> tuple[Stage, Step]:
    look = _Look()
    reasons: dict[str, str] = {}
    step = Step(mq, hook, message, args, look=look)
    mq.clock.run_until(_watching(step, reasons, mq, hook))
    error = step.result().error
    calls = tuple(
        Done(
            call.plugin, call.verdict, took if call.held is None else call.seconds or 0.0, call.held,
            None if call.held is None else reasons.get(call.plugin), call.changes,
            call.error if call.verdict != FAIL.name else _with_place(mq, call.plugin, call.error, error),
        )
        for call, took in zip(step.timeline, look.seconds[1:], strict=False)
    )  # fmt: skip
    return Stage(hook, about, calls, step.not_called), step


def _with_place(mq: Mq, name: str, text: str | None, error: BaseException | None) -> str | None:
    """What a plugin raised, with the line of the plugin's that it came from, or of whoever raised it."""
    path = next((each.path for each in mq.plugins if each.name == name), None)
    where = None if error is None else own_place(path, error, or_any=True)
    return text if where is None else f"{text} ({where})"


def _watching(step: Step, reasons: dict[str, str], mq: Mq, hook: str) -> Callable[[], bool]:
    """Whether the step is over; meanwhile it notes what plugins hold the message with."""

    def is_over() -> bool:
        holder = step.held_by
        if holder is not None and (why := _reason(mq, holder, hook)):
            reasons.setdefault(holder, why)
        return step.is_over

    return is_over


def _reason(mq: Mq, holder: str, hook: str) -> str:
    plugin = next((each for each in mq.plugins if each.name == holder), None)
    function = None if plugin is None else plugin.hooks.get(hook)
    nothing = ("coroutine" if plugin and hook in plugin._coroutine_hooks else "", None, None)
    kind, callback, due = next(iter(running_of(holder)), nothing)
    deadline = mq.next_deadline()
    if due is not None and deadline is not None and deadline < mq.clock.now + due:
        kind = f"{kind} due in {write_duration(due)}"  # which is too late
    code = getattr(callback, "__code__", None) or getattr(function, "__code__", None)
    place = None if code is None else f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"
    return ", ".join(filter(None, [kind, place]))
