"""Refusals: each is counted, logged, and told to the plugins that want to know."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter
from typing import Any

from .. import Dispatcher, MqError
from ._mail import Mail, copy_rejected
from .verdicts import Kind, Verdict

MOST_LINES = 100
"""In the log, within a second."""
PERIOD = 1.0
LONGEST = 200
"""Characters of what a client chose, in the log."""
HOOK = "mq_smtp_in_rejected"

log = logging.getLogger("mqcore.mail.refused")


class Refusals:
    """Those of one run. `counts`: by stage and code. `unlogged`: how many were beyond what is logged within a second."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self._loop = asyncio.get_running_loop()
        self._hook = dispatcher.hook(HOOK) if HOOK in dispatcher.plugins.hooks else None
        self._plugins = dispatcher.plugins
        self._lines = 0
        self._more = 0
        self.unlogged = 0
        self._timer: asyncio.TimerHandle | None = None

    def note(self, stage: str, code: int, text: str, **about: object) -> None:
        """Count it, and log it with what is known `about` it: what is None or empty is not. All of it may be a client's."""
        self.counts[stage, code] += 1
        if not log.isEnabledFor(logging.INFO):
            return
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD, self._end_period)
        if self._lines == MOST_LINES:
            self._more += 1
            self.unlogged += 1
            return
        self._lines += 1
        known = {name: value for name, value in about.items() if value is not None and value != ""}
        fields = "".join(f" {name}={quoted(value)}" for name, value in known.items())
        extra = {"event": "refused", "stage": stage, "code": code, "connection": about.get("client")}
        extra |= {name: str(value)[:LONGEST] for name, value in known.items()}
        log.info("stage=%s%s reply=%s", stage, fields, quoted(f"{code} {text}"), extra=extra)

    def note_mail(self, stage: str, mail: Mail, verdict: Verdict) -> None:
        """The same for what becomes of a mail."""
        code, text = verdict.reply
        connection = mail.connection
        self.note(
            stage,
            code,
            text,
            client=None if connection is None else connection.peer,
            helo=None if connection is None else connection.helo,
            mail=mail.origin.id,
            sender=mail.envelope,
            recipient=mail.origin.recipient or mail.recipient,
            plugin=mail.rejected_by,
            error=describe(mail.error) if verdict.kind is Kind.FAILED else None,
        )
        self.tell(mail)

    def tell(self, mail: Mail) -> None:
        """Let plugins know of what a plugin rejected: a copy of it, later, so that nothing changes and nobody waits."""
        if mail.rejected_by is not None and self._hook is not None and self._plugins.order(HOOK):
            self._loop.call_soon(self._run, copy_rejected(mail, _copied(mail.json)))

    def _run(self, mail: Mail) -> None:
        assert self._hook is not None
        try:
            self._hook.run(mail)
        except MqError:  # the dispatcher is closed
            log.debug("plugins are not told of a refusal any more")

    def close(self) -> None:
        """Say what is left to say."""
        if self._timer is not None:
            self._timer.cancel()
            self._end_period()

    def _end_period(self) -> None:
        self._timer = None
        self._lines, more, self._more = 0, self._more, 0
        if more:
            log.info("... and %d more", more)


def quoted(value: object) -> str:
    """A value as one word of a line of the log, whatever a client put into it: in quotes, with control characters, line ends
    and all else that does not print escaped."""
    text = str(value)
    word = repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
    return word if len(word) <= 2 * LONGEST else repr(f"{text[: LONGEST // 8]}...")  # much of it is escaped


def describe(error: BaseException | None) -> str | None:
    """Why a step failed, and whose fault that is."""
    if error is None:
        return None
    try:
        return ", ".join((f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())))
    except Exception:  # what plugins raise may be anything
        return type(error).__name__


def _copied(json: dict[str, Any]) -> dict[str, Any]:
    try:
        return copy.deepcopy(json)
    except Exception:  # what plugins put into it may be anything
        return dict(json)
