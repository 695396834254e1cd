"""Giving what is good to a sink that takes it by a coroutine."""

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
    """Gives the good mails of each transaction to the sink, in a task of `tasks`, and says what became of them. What the sink
    still has to do when that is told is done in another task."""

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
            self.is_instant = sink.instant
            self.follows_up = type(sink).settled is not Sink.settled
            self.deliver_soon = sink.deliver_soon if sink.delivers_soon else None
        self.answer = self._answer

    cdef int add(self, Transaction transaction) except -1:
        cdef bint is_single = len(transaction.mails) == 1
        transaction.delivering = transaction.mails if is_single else tuple(transaction.good_mails())
        if self.is_instant:
            return run_at_once(self._deliver(transaction), self.sink)
        if self.deliver_soon is not None and self.give(transaction):
            return 0
        return self.start(transaction, self._deliver(transaction))

    cdef int start(self, Transaction transaction, delivering) except -1:
        task = self.tasks.create_task(delivering)
        self.transactions[task] = transaction
        task.add_done_callback(self._after_delivery)
        return 0

    cdef bint give(self, Transaction transaction) except -1:
        """Whether the sink has begun with it, without a task."""
        cdef bint was_committing = transaction.committing
        if transaction.cancelled and not was_committing:
            return False
        transaction.committing = True
        transaction.given = transaction.delivering
        transaction.given_at = monotonic()
        self.begun.add(transaction)
        try:
            if self.deliver_soon(transaction.given, transaction, self.answer):
                return True
        except Exception as error:
            log.exception("%s failed", self.sink.url)
            self._answer(transaction, Verdict.failed(error))
            return True
        self.begun.discard(transaction)
        transaction.committing = was_committing
        transaction.given = None
        transaction.given_at = 0
        return False

    def _answer(self, Transaction transaction not None, verdict, going_on=None):
        """See `Sink.deliver_soon`."""
        try:
            self.begun.remove(transaction)
        except KeyError:
            return  # it was broken off
        if verdict is None:
            self.start(transaction, self._deliver(transaction, going_on))
            return
        self.seconds.count(monotonic() - transaction.given_at)
        self.sizes.count(1)
        self.delivered(transaction, [verdict])

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
        except SinkError as error:
            self.on_error(str(error))
            verdicts = [CANCELLED] * len(mails)
        except MemoryError:
            verdicts = [FULL] * len(mails)
        except Exception as error:
            log.exception("%s failed", self.sink.url)
            verdicts = [Verdict.failed(error)] * len(mails)
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


cdef int run_at_once(delivering, sink) except -1:
    """Without a task, and without waiting for the next turn of the loop."""
    try:
        delivering.send(None)
    except StopIteration:
        return 0
    delivering.close()
    raise RuntimeError(f"{sink.url} waited, which a sink that is instant does not")
