"""What happened to one transaction: each step, with what plugins did in it, and the replies.

Nobody is asked for the sake of a transaction that nobody wants to see: a gateway whose `tracers` is None looks at no more than
that. What is looked at goes by `hook.run_traced`, and is otherwise as all else.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import Hook, Message, Outcome, Trace
from ._mail import Connection, Mail
from .verdicts import Verdict

if TYPE_CHECKING:
    from ._gateway import Gateway

MOST_STEPS = 500
MOST_CALLS = 500
"""Of plugins, in all steps together."""
MOST_CHANGES = 10
"""Of one call."""
LONGEST = 200
"""Characters of what a client or a plugin chose."""
LONGEST_HEADER = 1 << 18
SECRET = ("mq_smtp_in_authenticate",)
"""Hooks whose changes are not told."""

log = logging.getLogger(__name__)

Done = Callable[[Any, Outcome], object]


class Step(NamedTuple):
    """`about`: whom it is about, a recipient or in MAIL the sender; None if nobody in particular."""

    hook: str
    about: str | None
    trace: Trace

    def as_dict(self) -> dict[str, Any]:
        trace = self.trace
        return {
            "hook": self.hook,
            "about": _short(self.about),
            "outcome": None if trace.outcome is None else trace.outcome.name,
            "seconds": round(trace.seconds, 9),
            "error": trace.error,
            "calls": [call._asdict() | {"changes": list(call.changes)} for call in trace.calls],
            "not_called": list(trace.not_called),
        }


class Timeline:
    """Of one transaction: from the connection or from MAIL to the reply, or of a mail from a file until it is settled.

    `events`: steps, and replies as text, in order. `verdicts`: what the gateway said of each mail. `end_reason`: why it ended
    without a reply. `seconds`: None until it has ended.
    """

    def __init__(self, id: str, connection: Connection | None, tracers: Sequence[Tracer]) -> None:
        self.id = id
        self.connection = connection
        self.tracers = list(tracers)
        self.started = time.time()
        self.events: list[Step | str] = []
        self.verdicts: Sequence[Verdict] = ()
        self.is_transaction = False
        self.end_reason: str | None = None
        self.seconds: float | None = None
        self.left_out = 0
        """Steps that are not told of, as there were too many, and calls."""
        self._calls_left = MOST_CALLS
        self._begun = time.perf_counter()

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    def run(self, hook: Hook, message: Mail, arguments: tuple[Any, ...], done: Done, about: str | None) -> Outcome | None:
        """`hook.run`, with a step of this."""
        steps = self.steps
        if steps:
            self._calls_left -= len(steps[-1].trace.calls)
        if len(steps) == MOST_STEPS or self._calls_left < 1:
            self.left_out += 1
            return hook.run_one(message, arguments, done)
        looks = hook.name not in SECRET and any(tracer.looks for tracer in self.tracers)
        trace = Trace(Changes() if looks else None, most=self._calls_left)
        self.events.append(Step(hook.name, about, trace))
        return hook.run_traced(message, trace, *arguments, done=done)

    def replied(self, replies: str) -> None:
        """The client is told so."""
        if len(self.events) < 2 * MOST_STEPS:
            self.events += replies.splitlines()

    def settled(self, verdicts: Sequence[Verdict]) -> None:
        """The gateway said so."""
        self.verdicts = verdicts

    def end(self, reason: str | None = None) -> None:
        """It is over. More than once is fine."""
        if self.seconds is not None:
            return
        self.seconds = time.perf_counter() - self._begun
        self.end_reason = reason
        self.left_out += sum(step.trace.left_out for step in self.steps)
        for tracer in self.tracers:
            try:
                tracer.ended(self)
            except Exception:
                log.exception("a transaction was not told of")

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        connection = self.connection
        return {
            "id": self.id,
            "peer": None if connection is None else connection.peer,
            "helo": None if connection is None else _short(connection.helo),
            "started": round(self.started, 6),
            "seconds": self.seconds,
            "events": [{"reply": event[:LONGEST]} if isinstance(event, str) else event.as_dict() for event in self.events],
            "verdicts": [verdict.kind.value for verdict in self.verdicts[:MOST_STEPS]],
            "end": self.end_reason,
            "left_out": self.left_out,
        }


class Tracer:
    """Who wants to see transactions. `looks`: what plugins changed, too."""

    looks = False

    def wants_from_connect(self, connection: Connection, id: str) -> bool:
        """Whether to begin when a client connects, and `id` is what the connection is called."""
        return False

    def wants(self, connection: Connection | None, id: str) -> bool:
        """Whether to begin now: at MAIL, when `id` is the connection's, or when a mail of this id is offered."""
        return False

    def ended(self, timeline: Timeline) -> None:
        """One that it wanted is over."""


def add_tracer(gateway: Gateway, tracer: Tracer) -> None:
    if gateway.tracers is None:
        gateway.tracers = Tracers()
    gateway.tracers.all.append(tracer)


def remove_tracer(gateway: Gateway, tracer: Tracer) -> None:
    """It wants no more; if it is not there, nothing happens."""
    tracers = gateway.tracers
    if tracers is not None and tracer in tracers.all:
        tracers.all.remove(tracer)
        if not tracers.all:
            gateway.tracers = None


class Tracers:
    """Those of one gateway, while there are any: what is asked for each transaction."""

    def __init__(self) -> None:
        self.all: list[Tracer] = []

    def connected(self, connection: Connection, id: str) -> Timeline | None:
        wanting = [tracer for tracer in tuple(self.all) if tracer.wants_from_connect(connection, id)]
        return Timeline(id, connection, wanting) if wanting else None

    def begin(self, timeline: Timeline | None, connection: Connection, id: str) -> Timeline | None:
        """At MAIL. `timeline`: the one that began when the client connected."""
        known = [] if timeline is None else timeline.tracers
        wanting = [tracer for tracer in tuple(self.all) if tracer not in known and tracer.wants(connection, id)]
        if timeline is None:
            return Timeline(id, connection, wanting) if wanting else None
        timeline.connection = connection
        timeline.tracers += wanting
        return timeline

    def offered(self, mail: Mail) -> Timeline | None:
        """Of a transaction that begins with this mail, where its source has not asked at MAIL."""
        connection, id = mail.connection, mail.origin.id
        wanting = [tracer for tracer in tuple(self.all) if tracer.wants(connection, id)]
        return Timeline(id, connection, wanting) if wanting else None


# What plugins change


class Changes:
    """Says what has changed in a mail since it was last asked. Never the body's content."""

    def __init__(self) -> None:
        self._before: _State | None = None

    def __call__(self, message: Message) -> list[str]:
        if not isinstance(message, Mail):  # one that stands in for it at the end
            return []
        before, self._before = self._before, _State.of(message)
        if before is None:
            return []
        changes = list(_differences(before, self._before))
        if len(changes) > MOST_CHANGES:
            changes[MOST_CHANGES:] = [f"and {len(changes) - MOST_CHANGES} more"]
        return changes


class _State(NamedTuple):
    mime: bytes
    known: dict[str, str]
    rejection: str | None
    discarded: bool

    @classmethod
    def of(cls, mail: Mail) -> _State:
        known = {str(name)[:LONGEST]: _as_text(value) for name, value in mail.json.items()}
        return cls(mail.mime, known, None if mail.rejection is None else str(mail.rejection), mail.discarded)


def _differences(before: _State, now: _State) -> Iterator[str]:
    if before.mime is not now.mime:
        yield from _of_mime(before.mime, now.mime)
    for name in {**before.known, **now.known}:
        old, new = before.known.get(name), now.known.get(name)
        if old == new:
            continue
        if old is None:
            yield f"+{name}: {new}"
        else:
            yield f"-{name}: {old}" if new is None else f"{name}: {old} -> {new}"
    if now.rejection != before.rejection:
        yield "not rejected any more" if now.rejection is None else f"rejected {now.rejection[:LONGEST]}"
    if now.discarded and not before.discarded:
        yield "discarded"


def _of_mime(before: bytes, now: bytes) -> Iterator[str]:
    (old_fields, old_body), (new_fields, new_body) = _parts(before), _parts(now)
    for sign, fields in (("-", old_fields - new_fields), ("+", new_fields - old_fields)):
        for field in fields.elements():
            yield sign + _short(re.sub(r"\s+", " ", field.decode("ascii", "backslashreplace")))
    if old_body != new_body:
        yield f"body: {len(old_body)} -> {len(new_body)} octets"


def _parts(mime: bytes) -> tuple[Counter[bytes], bytes]:
    """The fields of the header, and the body."""
    end = re.search(rb"\A\r?\n|\n\r?\n", mime)
    header = mime[: len(mime) if end is None else end.end()]
    fields = re.split(rb"\r?\n(?![ \t])", header[:LONGEST_HEADER])
    return Counter(filter(None, fields)), mime[len(header) :]


def _as_text(value: object) -> str:
    try:
        return json.dumps(value, default=lambda other: f"<{type(other).__name__}>", ensure_ascii=False)[:LONGEST]
    except Exception:  # what plugins put into it may be anything
        return f"<{type(value).__name__}>"


def _short(text: str | None) -> Any:
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}..."
