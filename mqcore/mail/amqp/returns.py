"""What becomes of messages that go no further: another queue has them, until later or for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...amqp.client import Delivery, Properties
from .._mail import Mail
from ..verdicts import PutBack, Verdict
from .message import ATTEMPT, Message, changed, unchanged
from .results import RESULTS, Results, error_text, known_results, results_of, split, write_result
from .retries import choose_rung, round_up, write_time

if TYPE_CHECKING:
    from .outlet import Outlet
    from .url import AmqpUrl

LONGEST_TEXT = 1000
"""Characters of a header that says why."""


class Letter:
    """One message of the queue, on its way. `is_wanted`: whether the queue still counts on us."""

    def __init__(self, delivery: Delivery, message: Message, mail: Mail, is_wanted: Callable[[], bool]) -> None:
        self.delivery = delivery
        self.message = message
        self.mail = mail
        self.is_wanted = is_wanted


class Returns:
    """Publishes to the queues beside the one that is read."""

    def __init__(self, where: AmqpUrl, outlet: Outlet, *, has_failed: bool) -> None:
        """`has_failed`: what is given up goes where the gateway has what failed, and not to a queue."""
        self._where = where
        self._outlet = outlet
        self._has_failed = has_failed

    async def put_back(self, letter: Letter, verdict: Verdict) -> PutBack:
        """See `Transaction.put_back`."""
        message, now = letter.message, time.time()
        results = results_of(letter.mail, verdict, now)
        waiting, refused, is_whole = split(letter.mail, verdict)
        why = error_text(letter.mail, verdict)
        if waiting is not None:
            received = message.received or now
            rung = choose_rung(message.known, message.attempt, received, self._where.ladder, now)
            if isinstance(rung, int):
                only = None if is_whole else waiting
                if not await self._publish_later(letter, rung, only, results, received):
                    return PutBack.LEFT
                if not refused:
                    return PutBack.RETRIED
            else:
                why, refused, waiting = f"{why} ({rung})", [*waiting, *refused], None
        return await self._give_up(letter, why, None if is_whole else refused, results, ends=waiting is None)

    async def _publish_later(
        self, letter: Letter, rung: int, recipients: Sequence[str] | None, results: Results, received: float
    ) -> bool:
        message = letter.message
        changes = {
            RESULTS: [*known_results(message), *results],
            "received": message.known.get("received") or write_time(received),
            "nextattempt": None,
        }
        headers = {ATTEMPT: message.attempt + 1}
        out = changed(letter.delivery, message, changes, recipients, headers)
        if len(out.body) > self._outlet.publishing.most:  # by what was said of it
            out = changed(letter.delivery, message, changes | {RESULTS: None}, recipients, headers)
        return await self._outlet.publish(self._where.rung(rung), out, letter.is_wanted)

    async def _give_up(
        self, letter: Letter, why: str, recipients: Sequence[str] | None, results: Results, *, ends: bool
    ) -> PutBack:
        """`recipients`: for whom; None: for all. `ends`: nobody else is waited for."""
        message = letter.message
        if not self._has_failed:
            headers = self._reason(why, " / ".join(getattr(letter.mail.error, "__notes__", ())) or "a plugin or the sink")
            if recipients is None:
                out = unchanged(letter.delivery, message.properties, headers)
            else:
                changes = {RESULTS: [*known_results(message), *results]}
                out = changed(letter.delivery, message, changes, recipients, headers)
            if not await self._outlet.publish(self._where.failed, out, letter.is_wanted):
                return PutBack.LEFT
        if ends and not await self.tell_result(letter, results):
            return PutBack.LEFT
        if self._has_failed:
            return PutBack.DECLINED
        return PutBack.SET_ASIDE if ends else PutBack.RETRIED

    async def tell_result(self, letter: Letter, results: Results) -> bool:
        """Whether whoever wants to know what became of the mail knows it."""
        if not self._where.results:
            return True
        out = write_result(letter.delivery, letter.message, results)
        return await self._outlet.publish(self._where.results, out, letter.is_wanted)

    async def put_off(self, delivery: Delivery, message: Message, seconds: float, is_wanted: Callable[[], bool]) -> bool:
        """Its own time has not come yet."""
        out = unchanged(delivery, message.properties, {ATTEMPT: message.attempt})
        return await self._outlet.publish(self._where.rung(round_up(seconds, self._where.ladder)), out, is_wanted)

    async def turn_away(self, delivery: Delivery, properties: Properties, reason: str, is_wanted: Callable[[], bool]) -> bool:
        """What is no mail."""
        out = unchanged(delivery, properties, self._reason(reason, "the message was read"))
        return await self._outlet.publish(self._where.failed, out, is_wanted)

    def _reason(self, why: str, where: str) -> Mapping[str, Any]:
        return {
            "x-mqcore-error": why[:LONGEST_TEXT],
            "x-mqcore-where": where[:LONGEST_TEXT],
            "x-mqcore-time": write_time(time.time()),
            "x-mqcore-source": str(self._where),
        }
