"""One message that came in by SMTP: through the plugins for each of its recipients, and then all of it to the sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ... import FAIL, Dispatcher, Hook, Outcome
from ..message import Mail, Rejection
from ..report import Counts
from ..writer import Finished, Writer
from .dialogue import printable

if TYPE_CHECKING:
    from .delivery import Delivery
    from .sender import Sender

Answer: TypeAlias = Callable[[Rejection | None], object]

FAILED = Rejection(451, "4.3.0 this server has a problem; try again later")


class Transaction:
    """Its mails, one for each recipient, pass through `mq_smtp_in_message`; nothing is stored until all verdicts are in.

    Any failure or temporary rejection is an answer for the client, and nothing is stored. So is the rejection of all.
    Otherwise the accepted go to the sink, the rejected to where failed mails go, and then the client gets its 250.

    If the sink is the next server, the accepted are sent there first, and what it says are verdicts too. Once it has one
    of them nothing can be taken back: then whatever it refuses, if only for now, goes to where failed mails go.
    """

    __slots__ = ("_answer", "_delivery", "_desk", "_open", "_verdicts", "cancelled", "is_storing", "mails")

    def __init__(self, desk: TransactionDesk, mails: Sequence[Mail], answer: Answer) -> None:
        self._desk = desk
        self.mails = mails
        self._answer = answer
        self._verdicts: list[Finished] = []
        self._open = len(mails)
        self._delivery: Delivery | None = None
        self.is_storing = False
        """Whether it is too late to take it back."""
        self.cancelled = False

    @property
    def success(self) -> str:
        """What the client is told with its 250."""
        if self._delivery is None:
            return f"stored as {self.mails[0].origin.id}"
        return printable(f"passed on: {self._delivery.success}")

    def begin(self) -> None:
        for mail in self.mails:
            outcome = self._desk.hook.run(mail, done=self._take_verdict)
            if outcome is not None:
                self._take_verdict(mail, outcome)

    def cancel(self) -> None:
        """The client is gone: take back what plugins hold. What is being stored or sent stays so, though nobody is told."""
        self.cancelled = True
        if self._delivery is not None:
            self._delivery.take_back()
        elif not self.is_storing:
            for mail in self.mails:
                self._desk.dispatcher.cancel(mail)

    def _take_verdict(self, mail: Mail, outcome: Outcome) -> None:
        self._verdicts.append((mail, outcome))
        self._open -= 1
        if self._open == 0:
            self._judge()

    def _judge(self) -> None:
        if self.cancelled:
            self._desk.counts.unfinished += len(self.mails)
            self._finish(None)
            return
        refusal = find_refusal(self._verdicts)
        if refusal is not None:
            self._refuse(refusal)
            return
        self.is_storing = True
        if self._desk.sender is None:
            self._desk.writer.add(self._verdicts, self._after_storing)
        else:
            self._delivery = self._desk.sender.send(self._verdicts, self._after_sending)

    def _refuse(self, refusal: Rejection) -> None:
        self._desk.count_refused(self._verdicts)
        self._finish(refusal)

    def _after_sending(self, mails: Sequence[Finished], finished: bool, delivered: bool) -> None:
        self._verdicts = list(mails)
        refusal = None if delivered else find_refusal(mails)
        if not finished:
            self._desk.counts.unfinished += len(mails)
            self._finish(FAILED)
        elif refusal is not None:
            self._refuse(refusal)
        else:
            self._desk.writer.add(mails, self._after_storing)

    def _after_storing(self, mails: Sequence[Finished], stored: bool) -> None:
        if not stored and self._delivery is not None:
            self._desk.counts.in_doubt += self._delivery.delivered  # the client sends it again
        if stored and self.cancelled:
            self._desk.counts.unanswered += len(mails)
        self._finish(None if stored else FAILED)

    def _finish(self, refusal: Rejection | None) -> None:
        if not self.cancelled:
            self._answer(refusal)
        self._desk.release(len(self.mails))


def find_refusal(verdicts: Sequence[Finished]) -> Rejection | None:
    """What the client is told in place of 250, if anything: the first reason to try again later, or that all are rejected."""
    rejected = 0
    for mail, outcome in verdicts:
        if outcome is FAIL:
            return FAILED
        if mail.rejection is not None:
            if mail.rejection.code < 500:
                return mail.rejection
            rejected += 1
    return verdicts[0][0].rejection if rejected == len(verdicts) else None


class TransactionDesk:
    """Lets transactions begin, while no more than `max_in_flight` mails are between the clients and the sink."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        hook: Hook,
        writer: Writer,
        sender: Sender | None,
        counts: Counts,
        max_in_flight: int,
    ) -> None:
        self.dispatcher = dispatcher
        self.hook = hook
        self.writer = writer
        self.sender = sender
        self.counts = counts
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._waiting: deque[Transaction] = deque()
        self._is_starting = False

    def submit(self, transaction: Transaction) -> None:
        self.counts.read += len(transaction.mails)
        self._waiting.append(transaction)
        self._start()

    def release(self, count: int) -> None:
        """So many mails are done with."""
        self._in_flight -= count
        self._start()

    def _start(self) -> None:
        if self._is_starting:  # one that is over at once comes back here, and must not nest
            return
        self._is_starting = True
        try:
            while self._waiting and self._in_flight < self._max_in_flight:
                transaction = self._waiting.popleft()
                if transaction.cancelled:
                    self.counts.unfinished += len(transaction.mails)
                else:
                    self._in_flight += len(transaction.mails)
                    transaction.begin()
        finally:
            self._is_starting = False

    def turn_away(self, count: int, *, failed: bool) -> None:
        """So many mails were refused before they existed."""
        self.counts.read += count
        if failed:
            self.counts.failed += count
        else:
            self.counts.rejected += count

    def count_refused(self, verdicts: Sequence[Finished]) -> None:
        """These are not stored, and their client knows."""
        for mail, outcome in verdicts:
            if outcome is FAIL:
                self.counts.failed += 1
            elif mail.rejection is not None:
                self.counts.rejected += 1
            else:
                self.counts.unfinished += 1
