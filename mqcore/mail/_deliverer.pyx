"""Giving what is good to a sink, which takes it at once, or by a coroutine."""

import asyncio
import logging

cimport cython
from cpython.time cimport monotonic
from ._histogram cimport Histogram
from ._transaction cimport Transaction

from .base import Sink
from .errors import SinkError
from .verdicts import CANCELLED, FULL, Verdict

log = logging.getLogger(__name__)

cdef object NO_ANSWER = "4.4.2 this took too long"


@cython.final
cdef class Deliverer:
    """Gives the good mails of each transaction to the sink, in a task of `tasks` unless it `delivers_soon`, and says what
    became of them. What the sink still has to do when that is told is done in another task."""

    def __cinit__(self, sink not None, delivered not None, dropped not None, released not None, on_error not None,
                  Histogram seconds not None, Histogram sizes not None):
        self.sink = sink
        self.delivered = delivered
        self.dropped = dropped
        self.released = released
        self.on_error = on_error
        self.seconds = seconds
        self.sizes = sizes
        self.transactions = {}
        self.begun = set()
        if not sink.stores:
            self.follows_up = type(sink).settled is not Sink.settled
            self.deliver_soon = sink.deliver_soon if sink.delivers_soon else None
        self.answer = self._answer

    cdef list add(self, Transaction transaction):
        """What the sink says of each of its good mails, if it does so at once; else `delivered` is called later."""
        transaction.delivering = transaction.mails if len(transaction.mails) == 1 else tuple(transaction.good_mails())
        if self.deliver_soon is not None and (transaction.committing or not transaction.cancelled):
            return self.give(transaction)
        self.start(transaction, self._deliver(transaction))
        return None

    cdef int start(self, Transaction transaction, delivering) except -1:
        task = self.tasks.create_task(delivering)
        self.transactions[task] = transaction
        task.add_done_callback(self._after_delivery)
        return 0

    cdef list give(self, Transaction transaction):
        """By `deliver_soon`, or in a task if that is not possible now. See `add`."""
        cdef bint was_committing = transaction.committing
        transaction.committing = True
        transaction.given = transaction.delivering
        transaction.given_at = monotonic()
        self.begun.add(transaction)
        try:
            said = self.deliver_soon(transaction.given, transaction, self.answer)
        except Exception as error:
            said = self.verdict_on(error)
        if transaction not in self.begun:  # it was answered meanwhile
            return None
        if type(said) is Verdict:
            self.begun.discard(transaction)
            return self.note(transaction, said)
        if said:
            return None
        self.begun.discard(transaction)
        transaction.committing = was_committing
        transaction.given = None
        transaction.given_at = 0
        self.start(transaction, self._deliver(transaction))
        return None

    cdef list note(self, Transaction transaction, verdict):
        """The sink says so of what it had by `deliver_soon`: of each mail."""
        cdef Py_ssize_t count = len(transaction.delivering)
        self.seconds.count(monotonic() - transaction.given_at)
        self.sizes.count(count)
        return [verdict] * count

    cdef object verdict_on(self, error):
        """What is said of mails where the sink raised this."""
        if isinstance(error, SinkError):
            self.on_error(str(error))
            return CANCELLED
        if isinstance(error, MemoryError):
            return FULL
        log.error("%s failed", self.sink.url, exc_info=error)
        return Verdict.failed(error)

    def _answer(self, Transaction transaction not None, verdict, going_on=None):
        """See `Sink.deliver_soon`."""
        try:
            self.begun.remove(transaction)
        except KeyError:
            return  # it was broken off
        if verdict is None:
            self.start(transaction, self._deliver(transaction, going_on))
            return
        self.delivered(transaction, self.note(transaction, verdict))

    async def _deliver(self, Transaction transaction not None, deliver=None):
        cdef tuple mails = transaction.delivering
        if transaction.cancelled and not transaction.committing:  # before this began
            self.dropped(transaction)
            return
        transaction.committing = True
        transaction.given = mails
        cdef double begun = transaction.given_at or monotonic()
        try:
            verdicts = list(await (self.sink.deliver if deliver is None else deliver)(mails))
            if len(verdicts) != len(mails) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
                raise TypeError(f"a sink returns a Verdict for each mail, not {verdicts!r}")
        except Exception as error:
            verdicts = [self.verdict_on(error)] * len(mails)
        self.seconds.count(monotonic() - begun)
        self.sizes.count(len(mails))
        self.delivered(transaction, verdicts)

    def _after_delivery(self, task):
        """However it ended, also before it began."""
        cdef Transaction transaction = self.transactions.pop(task)
        if transaction.delivering is None:
            return
        if transaction.cancelled and not transaction.committing:
            self.dropped(transaction)
        else:  # the task was cancelled
            verdict = CANCELLED if transaction.given is None else Verdict.in_doubt(NO_ANSWER)
            self.delivered(transaction, [verdict] * len(transaction.delivering))

    cdef bint follow_up(self, Transaction transaction) except -1:
        """Whether the sink has more to do with it, until which it is not released."""
        if not self.follows_up:
            return False
        try:
            following = self.sink.settled(transaction.given)
            if following is None:
                return False
            task = self.tasks.create_task(following)
        except Exception:
            log.exception("%s failed", self.sink.url)
            return False
        self.transactions[task] = transaction
        task.add_done_callback(self._after_follow_up)
        return True

    def _after_follow_up(self, task):
        self.released(self.transactions.pop(task))

    cdef int cut(self) except -1:
        """Break off what is still open."""
        for task in self.transactions:
            if not task.cancelling():
                task.cancel()
        if self.begun:
            asyncio.get_running_loop().call_soon(self._cut_begun)
        return 0

    def _cut_begun(self):
        for transaction in list(self.begun):
            self._answer(transaction, Verdict.in_doubt(NO_ANSWER))
