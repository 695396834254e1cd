"""What is said of a mail when an attempt is over, in MailerQ's keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...amqp.client import Delivery
from .._mail import Mail
from ..verdicts import Kind, Verdict
from .body import dump, write_body
from .message import ATTEMPT, Message, Outgoing, read_mail, with_headers
from .retries import write_time

RESULTS = "results"
_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3}) ")
_OUTCOMES = {2: "success", 4: "retry", 5: "failure"}

Results = Sequence[Mapping[str, Any]]


class Split(NamedTuple):
    """The recipients of a mail that was not taken for all of them."""

    waiting: Sequence[str] | None
    """Those for whom it may be tried again; None if there are none."""
    refused: Sequence[str]
    """Those that were refused for good."""
    is_whole: bool
    """Whether it is the same for all, so that these are empty."""


def split(mail: Mail, verdict: Verdict) -> Split:
    replies = _replies(mail)
    waiting = [to for to, code, *_ in replies if code is None or (code < 400 and code >= 300) or 400 <= code < 500]
    refused = [to for to, code, *_ in replies if code is not None and code >= 500]
    if verdict.kind is Kind.FAILED or len(waiting) == len(replies) or len(refused) == len(replies):
        return Split(None if verdict.kind is Kind.REJECTED else [], [], True)
    return Split(waiting or None, refused, False)


def results_of(mail: Mail, verdict: Verdict, now: float) -> list[dict[str, Any]]:
    """One for each recipient of whom something is known, else one for all."""
    about = {"time": write_time(now), "from": mail.envelope}
    replies = _replies(mail)
    if replies:
        return [
            {
                "state": state,
                "result": _OUTCOMES.get((code or 400) // 100, "retry"),
                **about,
                "to": to,
                "code": code or 0,
                **_text(text),
            }
            for to, code, state, text in replies
        ]
    code, text = (250, verdict.text or "accepted") if verdict.is_good else verdict.reply
    if verdict.kind is Kind.FAILED:
        text = error_text(mail, verdict)
    to = mail.recipient if mail.recipient is not None else ", ".join(map(str, mail.recipients))
    return [{"state": "message", "result": _OUTCOMES.get(code // 100, "retry"), **about, "to": to, "code": code, **_text(text)}]


def error_text(mail: Mail, verdict: Verdict) -> str:
    """Why it was not taken."""
    if verdict.kind is not Kind.FAILED:
        return str(verdict.reply)
    error = mail.error or verdict.error
    if error is None:
        return "it failed, and nobody says why"
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # plugins raise what they like
        return type(error).__name__


def _replies(mail: Mail) -> list[tuple[str, int | None, str, str]]:
    """What the next server said, if the sink is one: recipient, code, state, text."""
    return [
        (result["recipient"], result.get("code"), result.get("state", ""), result.get("description", ""))
        for result in mail.results
    ]


def _text(text: str) -> dict[str, str]:
    match = _STATUS.match(text)
    return {"status": match[1] if match else "", "description": text[match.end() :] if match else text}


def known_results(message: Message) -> list[Any]:
    """Of the attempts before."""
    before = message.known.get(RESULTS)
    return list(before) if isinstance(before, list) else []


def write_result(delivery: Delivery, message: Message, results: Results) -> Outgoing:
    """For whoever wants to know: all that is known about the mail, and the mail itself if it says so by `keepmime`."""
    mime, known = read_mail(delivery, message.properties)
    known = {name: value for name, value in known.items() if isinstance(value, str | int | float | list | dict | None)}
    known[RESULTS] = [*known_results(message), *results]
    body = write_body(mime, known) if known.get("keepmime") else dump(known)
    properties = replace(message.properties, content_type="application/json", content_encoding=None)
    return Outgoing(with_headers(properties, {ATTEMPT: message.attempt}), body)
