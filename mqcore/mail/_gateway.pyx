"""The way of mails from a source through the plugins to a sink, and what becomes of them there."""

import asyncio
import logging
import time
from collections import deque

cimport cython
from cpython.time cimport monotonic
from .._dispatcher cimport Dispatcher
from ._counts cimport DISCARDED, FAILED as FAILURES, IN_DOUBT, PRESENT, READ, REJECTED, RETRIED, UNFINISHED, Row
from ._deliverer cimport Deliverer
from ._hand cimport Hand
from ._histogram cimport Histogram
from ._mail cimport Mail
from ._settler cimport Settler, end_timeline
from ._spool cimport Memory, Spool
from ._transaction cimport Transaction
from ._writer cimport Writer

from .. import COMPLETE, FAIL, Cancelled
from ._mail import put_in_spool
from .errors import SourceError
from .refusals import Refusals
from .report import UNREACHABLE, Counts, Report
from .returner import Returner
from .threads import begin_thread
from .verdicts import ACCEPTED, FAILED, FULL, PutBack, Rejection

HOOK = "mq_smtp_in_message"
IN_FLIGHT_BYTES = 64 << 20
"""No more is read while the mails in flight have so many bytes: a thousand big ones must not fill the memory."""
PATIENCE = 25.0
"""Seconds that what is open has when the run is stopped."""
CUT_AGAIN = 1.0
"""Seconds until what is open even after that is broken off once more."""
ALONE_IN = 10.0
"""Seconds that a mail which is to run alone, and all that came after it, wait for those before it."""
ENDS_PROCESSES = Rejection(554, "5.3.0 this message ended the server, again and again")
NOT_ALONE = Rejection(451, "4.3.0 this message may end the server; try again when there are fewer others")

cdef enum:
    BATCH = 256             # mails whose steps begin at once

cdef double PORTION = 1e-3  # seconds of a turn of the loop for the steps of mails to many recipients

log = logging.getLogger(__name__)


@cython.final
cdef class Gateway:
    """Moves each mail of `source` through the hook `mq_smtp_in_message` to `sink`. The promise is kept here: a source is told
    that a mail is accepted only when the sink has it.

    At most `max_in_flight` mails are on the way: in a plugin's hands, or with the sink.

    Where a source has one verdict for all mails of a transaction, any failure or temporary rejection is the verdict, and
    nothing is stored; so is the rejection of all. Otherwise the rejected go to `failed`, as the source had them, and the
    good ones to the sink. Once a sink has one of them nothing can be taken back: then whatever it refuses, if only for
    now, goes to `failed`. Where no client waits for a verdict, all that failed or was rejected goes there; without
    `failed` it is only counted. Where one waits and there is no `failed`, all is refused as soon as one is; so then a
    sink may not commit in parts.

    A source that is a queue is asked what it did with what was refused or failed, and settled after that. Where it is told
    that all is well, it has no more to do with the mail; else the mail is still there.

    It may be one of several `processes` of a run: each may have its part of the memory, and of the connections to others.
    A process that another one watches gives `counts`, and `hand`, in memory that both have: what this one counted and had in
    flight when it was killed is known then.

    Made in a coroutine, and run once.
    """

    def __cinit__(self, Dispatcher dispatcher not None, source not None, sink not None, failed=None, *,
                  Py_ssize_t max_in_flight=1000, Row counts=None, Hand hand=None, int processes=1):
        if failed is None and needs_failed(source, sink):
            raise ValueError(f"{sink.url} may take a mail for some of its recipients only: a place for failed mails is needed")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is at least 1, not {max_in_flight}")
        self.dispatcher = dispatcher
        self.source = source
        self.sink = sink
        self.failed = failed
        self.has_waiting_client = source.has_waiting_client
        self.settles_each = source.has_waiting_client and source.settles_each
        self.is_queue = source.is_queue
        self.report = Report(Counts() if counts is None else counts, finite=source.finite)
        self.counts = self.report.counts
        self.hand = hand
        self.refusals = Refusals(dispatcher)
        self.report.refusals = self.refusals.counts
        self.settler = Settler(source, self.counts, self.refusals, failed is not None)
        self.ends_when = source.ends_when or sink.ends_when
        self.hook = dispatcher.hook(HOOK)
        store = sink if sink.stores else None
        self.commit_seconds = Histogram(1e-3)
        self.group_mails = Histogram(1)
        self.writer = Writer(store, failed, self._stored, self._drop, self.fail, source.has_waiting_client,
                             source.is_queue, self.commit_seconds, self.group_mails)
        self.returner = Returner(self._returned)
        self.deliverer = Deliverer(sink, self._delivered, self._drop, self._release, self.fail,
                                   self.commit_seconds, self.group_mails)
        self.loop = asyncio.get_running_loop()
        self.processes = processes
        self.memory = Memory(processes)
        self.active = set()
        self.waiting = deque()
        self.pending = deque()
        self.take = self._take
        self.change = asyncio.Event()
        self.limit = max_in_flight

    @property
    def max_in_flight(self):
        """May be changed while it runs; what is on the way goes on."""
        return self.limit

    @max_in_flight.setter
    def max_in_flight(self, Py_ssize_t limit):
        if limit < 1:
            raise ValueError(f"max_in_flight is at least 1, not {limit}")
        self.limit = limit
        self.start()
        self.notify()

    @property
    def bytes_out(self):
        """Octets of the mails that the sink has."""
        return self.settler.bytes_out

    @property
    def total(self):
        """What there is to do, for a progress bar; None if nobody knows."""
        return self.source.total

    @property
    def done(self):
        """How much of it is done."""
        return self.counts.numbers[READ] if self.source.total is None else self.source.done

    async def run(self):
        """Ends when all mails of the source are settled, after `stop`, or when the source or a sink failed: see the report."""
        if self.tasks is not None:
            raise RuntimeError("a gateway is run once")
        begin = time.perf_counter()
        if not self.sink.stores:
            self.sink.begin(self)
        try:
            async with asyncio.TaskGroup() as self.tasks:
                self.deliverer.tasks = self.returner.tasks = self.tasks
                self.tasks.create_task(self.writer.run())
                try:
                    if self.writer.blocks or self.failed is not None:
                        begin_thread()
                    await self.source.run(self)
                except SourceError as error:
                    self.fail(str(error))
                while self.in_flight or self.waiting:
                    await self._wait()
                self.writer.close()
        finally:
            self.is_draining = self.is_stopping = True  # a stop that comes late has nothing to do
            for timer in filter(None, (self.timer, self.patience)):
                timer.cancel()
            self.refusals.close()
            await self.source.end()
            if not self.sink.stores:
                await self.sink.end()
        self.report.seconds = time.perf_counter() - begin
        self.report.hooks = self.dispatcher.stats().hooks
        return self.report

    def drain(self, timeout=None, why=None):
        """Take no more mail, and end when what is open is over, however long plugins hold it. What is still open after
        `timeout` seconds, if that is given, is broken off. May be called again, with another timeout."""
        if self.is_stopping:
            return
        if not self.is_draining:
            self.is_draining = True
            if self.source.finite:
                self.report.stopped = why
            self.source.stop()
            self.notify()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if timeout is None else self.loop.call_later(timeout, self._end_draining)

    def _end_draining(self):
        self.stop(self.report.stopped, 0.0)

    def stop(self, why=None, patience=None):
        """Take no more mail, and end when what is open is over. Where no client waits, what plugins hold is taken back. What is
        still open after `patience` (PATIENCE), in seconds, is broken off."""
        cdef Transaction transaction
        if self.is_stopping:
            return
        self.is_stopping = True
        if self.source.finite:
            self.report.stopped = why
        if not self.is_draining:
            self.is_draining = True
            self.source.stop()
        if not self.has_waiting_client or self.is_queue:
            for transaction in [*self.active, *self.waiting]:
                if self.is_queue and not transaction.steps_left:
                    continue
                transaction.cancelled = not transaction.committing
                self.cancel(transaction)
        self.writer.hurry()
        self.start()
        self.notify()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(PATIENCE if patience is None else patience, self._cut)

    def _cut(self):
        """Break off what is still open."""
        cdef Transaction transaction
        self.is_cut = True
        self.deliverer.cut()
        self.returner.cut()
        self.source.cut()
        for transaction in list(self.active):
            if not transaction.committing:
                self.cancel(transaction)
        self.timer = self.loop.call_later(CUT_AGAIN, self._cut)

    def fail(self, str reason not None, int code=UNREACHABLE):
        """End the run with this exit code, as there is no going on."""
        if self.report.error is None:
            self.report.error = reason
            self.report.error_code = code
        self.stop()

    # What a source calls

    async def room(self):
        """Wait until there is room for more mails, and return for how many. 0: the run is being stopped."""
        while not self.is_draining and (self.in_flight >= self.limit or self.bytes >= IN_FLIGHT_BYTES // self.processes):
            await self._wait()
        return 0 if self.is_draining else self.limit - self.in_flight

    def offer(self, transactions):
        """Take these. What there is no room for waits."""
        cdef Transaction transaction
        for one in transactions:
            transaction = one
            self.enter(transaction)
        self.start()

    def has(self, id):
        """Whether the sink has a mail with this `Origin.id` from an earlier run. Any thread."""
        return id in self.sink

    def skip(self, Py_ssize_t count):
        """So many mails were read that the sink has."""
        self.counts.numbers[READ] += count
        self.counts.numbers[PRESENT] += count

    cdef int submit(self, Transaction transaction) except -1:
        self.enter(transaction)
        return self.start()

    cdef int enter(self, Transaction transaction) except -1:
        if transaction is None or transaction.mails is None or transaction.steps is not None:
            raise TypeError("what is offered is a transaction that is offered for the first time")
        transaction.size = size_of(<Mail>transaction.mails[0])  # which all of them share
        for mail in transaction.mails:
            if (<Mail>mail).transaction is not None:
                forget(transaction)
                raise ValueError(f"{mail!r} is offered twice")
            (<Mail>mail).transaction = transaction
        if self.tracers is not None and not transaction.was_offered:
            transaction.timeline = self.tracers.offered(transaction.mails[0])
        transaction.gateway = self
        transaction.begun = monotonic()
        transaction.steps_left = len(transaction.mails)
        transaction.steps = []
        self.counts.numbers[READ] += transaction.steps_left
        self.bytes_in += transaction.size
        self.waiting.append(transaction)
        return 0

    cpdef int turn_away(self, Py_ssize_t count, bint failed) except -1:
        """So many mails were refused before they existed."""
        self.counts.numbers[READ] += count
        if failed:
            self.counts.numbers[FAILURES] += count
        else:
            self.counts.numbers[REJECTED] += count
        return 0

    cpdef int count_discarded(self, Py_ssize_t count) except -1:
        """So many mails were accepted and dropped before they existed."""
        self.counts.numbers[READ] += count
        self.counts.numbers[DISCARDED] += count
        return 0

    def count_put_off(self, Py_ssize_t count):
        """So many mails were put back for later before they existed."""
        self.counts.numbers[READ] += count
        self.counts.numbers[RETRIED] += count

    def void(self, Transaction transaction not None):
        """See `Transaction.void`."""
        if transaction.delivering is not None or transaction not in self.active:
            self.cancel(transaction)

    def cancel(self, Transaction transaction not None):
        """See `Transaction.cancel`."""
        if transaction.delivering is not None:
            self.sink.cancel(transaction.delivering)
        elif transaction in self.active:
            if not transaction.committing:
                for mail in transaction.mails:
                    self.dispatcher.cancel(mail)
        elif transaction.gateway is self:  # it waits: its bytes need not
            self.counts.numbers[UNFINISHED] += len(transaction.mails)
            end_timeline(transaction)
            transaction.gateway = None
            forget(transaction)
            transaction.mails = ()
            transaction.released()

    # Through the plugins

    cdef int start(self) except -1:
        """Let what waits begin, as far as there is room."""
        cdef list mails
        if self.is_starting:  # a step that ends at once calls this again, by release()
            return 0
        self.is_starting = True
        try:
            while self.waiting:
                mails = self.begin()
                if mails is None:
                    break
                if len(mails) == 1:
                    self.run_step(<Mail>mails[0])
                elif mails:
                    self.run_steps(mails)
                if self.pending and not self.is_portioned:
                    self.run_portion()
        finally:
            self.is_starting = False
        return 0

    cdef int run_steps(self, list mails) except -1:
        try:
            outcomes = self.hook.run_many(mails, done=self.take)
        except Exception:  # one of them is in no state to be run, by the source's fault
            for mail in mails:
                self.run_step(<Mail>mail)
            return 0
        for mail, outcome in zip(mails, outcomes):
            if outcome is not None:
                self.ended(<Mail>mail, outcome)
        return 0

    cdef int run_step(self, Mail mail) except -1:
        cdef object outcome
        try:
            if (<Transaction>mail.transaction).timeline is None:
                outcome = self.hook.run_one(mail, (), self.take)
            else:
                outcome = (<Transaction>mail.transaction).timeline.run(self.hook, mail, (), self.take, mail.recipient)
        except Exception:
            log.exception("the plugins were not asked about a mail of %s", self.source.url)
            outcome = FAIL
        return self.ended(mail, outcome) if outcome is not None else 0

    cdef int run_portion(self) except -1:
        """Begin the steps of mails to many recipients, until this turn of the loop has been at it for long enough."""
        cdef double until = monotonic() + PORTION
        cdef Mail mail
        while self.pending:
            mail = self.pending.popleft()
            if (<Transaction>mail.transaction).cancelled:
                self.ended(mail, None)
            else:
                self.run_step(mail)
            if self.pending and monotonic() >= until:
                self.is_portioned = True
                self.loop.call_soon(self._go_on)
                return 0
        return 0

    def _go_on(self):
        self.is_portioned = False
        self.is_starting = True
        try:
            self.run_portion()
        finally:
            self.is_starting = False
        self.start()

    cdef list begin(self):
        """The mails whose steps begin now, of transactions with one; others become `pending`. None: there is no room."""
        cdef Transaction transaction
        cdef list mails = []
        cdef bint begun = False
        while self.waiting and len(mails) < BATCH:
            transaction = self.waiting[0]
            if transaction.cancelled:
                self.waiting.popleft()  # see cancel()
                self.notify()
                continue
            if self.in_flight >= self.limit or transaction.timeline is not None and mails:  # that one goes alone
                break
            if self.hand is not None and self.hand.must_wait(transaction, self.in_flight):
                self.be_patient()
                break
            self.waiting.popleft()
            self.active.add(transaction)
            self.in_flight += len(transaction.mails)
            self.bytes += transaction.size
            begun = True
            if self.hand is not None:
                if self.hand.is_refused(transaction):
                    self.refuse_unseen(transaction, ENDS_PROCESSES)
                    continue
                self.hand.take(transaction)
            if len(transaction.mails) == 1:
                mails.append(transaction.mails[0])
            else:
                self.pending.extend(transaction.mails)
            if transaction.timeline is not None:
                break
        return mails if begun else None

    cdef int refuse_unseen(self, Transaction transaction, rejection) except -1:
        """It has begun, and no plugin sees it."""
        for mail in transaction.mails:
            (<Mail>mail).refusal = rejection
            self.ended(<Mail>mail, COMPLETE)
        return 0

    cdef int be_patient(self) except -1:
        """What waits first is to run alone, or waits for one that does."""
        if self.patience is None and self.hand.alone is None:
            self.patience = self.loop.call_later(ALONE_IN, self._end_patience, self.waiting[0])
        return 0

    def _end_patience(self, Transaction transaction not None):
        self.patience = None
        if self.waiting and self.waiting[0] is transaction and not transaction.cancelled:
            self.waiting.popleft()
            self.active.add(transaction)
            self.in_flight += len(transaction.mails)
            self.bytes += transaction.size
            self.refuse_unseen(transaction, NOT_ALONE)
        self.start()

    def _take(self, Mail mail not None, outcome):
        self.ended(mail, outcome)

    cdef int ended(self, Mail mail, outcome) except -1:
        """The step of a mail is over; with the last of its transaction, that is routed."""
        cdef Transaction transaction = mail.transaction
        if transaction is None:
            raise RuntimeError("this mail is on no way through this gateway")
        mail.transaction = None
        if len(transaction.mails) > 1:
            self.spool(transaction, mail)
        transaction.steps.append((mail, outcome))
        transaction.steps_left -= 1
        return self.decide(transaction) if transaction.steps_left == 0 else 0

    cdef int spool(self, Transaction transaction, Mail mail) except -1:
        """Keep what plugins made of one mail of many in little memory."""
        if transaction.spool is None:
            transaction.spool = Spool(self.memory)
        try:
            put_in_spool(mail, transaction.spool)
        except (OSError, MemoryError) as error:
            if not transaction.full:
                log.warning("%d mails of %s are refused for now: their bytes do not fit into the memory, and a file for them "
                            "cannot be written: %s", len(transaction.mails), self.source.url, error)
            transaction.full = True
            mail.set_bytes(b"")  # what is refused is of no use
        return 0

    cdef int decide(self, Transaction transaction) except -1:
        """What is to become of it: whatever goes wrong, it is settled."""
        try:
            self.route(transaction)
        except Exception:
            self.give_up(transaction)
        return 0

    # What is to become of it

    cdef int route(self, Transaction transaction) except -1:
        if transaction.cancelled and (self.has_waiting_client or was_cancelled(transaction.steps)):
            return self.drop(transaction)
        transaction.cancelled = False  # the plugins were done with it before the run was stopped
        transaction.sort()
        if transaction.refused is not None:
            self.settler.note_refused(transaction)
        if transaction.full:
            self.settler.note_first(transaction, FULL)
            return self.refuse(transaction, FULL)
        if self.is_queue and transaction.refused is not None:
            return self.put_back(transaction)
        if transaction.refused is not None:
            refusal = self.settler.refusal_of(transaction)
            if refusal is not None:
                return self.refuse(transaction, refusal)
        transaction.committing = not self.has_waiting_client  # a client may go away until the sink has it
        if self.sink.stores or not transaction.good:
            return self.write(transaction)
        verdicts = self.deliverer.add(transaction)
        return 0 if verdicts is None else self.take_verdicts(transaction, verdicts)

    cdef int put_back(self, Transaction transaction) except -1:
        """The queue is asked what it did with it."""
        transaction.committing = True
        transaction.bad = list(transaction.refused)
        self.returner.add(transaction, transaction.refused[transaction.bad[0]])
        return 0

    def _returned(self, Transaction transaction not None, how):
        """The queue says so: whatever goes wrong, it is settled."""
        try:
            if how is PutBack.DECLINED:
                if self.writer.add(transaction):
                    self.committed(transaction, True, True)
            elif how is PutBack.LEFT:
                self.counts.numbers[UNFINISHED] += len(transaction.bad)
                self.settle(transaction, FAILED)
            else:
                if how is PutBack.SET_ASIDE:
                    self.settler.count_refused(transaction)
                else:
                    self.counts.numbers[RETRIED] += len(transaction.bad)
                self.settle(transaction, ACCEPTED)
        except Exception:
            self.give_up(transaction)

    cdef int write(self, Transaction transaction) except -1:
        """Store what is to be stored."""
        transaction.bad = [] if self.settles_each or transaction.refused is None else list(transaction.refused)
        if not (transaction.good or transaction.bad) or self.writer.add(transaction):
            return self.committed(transaction, True, True)
        return 0

    def _delivered(self, Transaction transaction not None, list verdicts not None):
        """The sink says so of each of the good ones: whatever goes wrong, it is settled."""
        try:
            self.take_verdicts(transaction, verdicts)
        except Exception:
            self.give_up(transaction)

    cdef int give_up(self, Transaction transaction) except -1:
        log.exception("a transaction of %s failed", self.source.url)
        if transaction.gateway is self:
            self.counts.numbers[UNFINISHED] += len(transaction.mails)
            self.settle(transaction, FAILED)
        return 0

    cdef int take_verdicts(self, Transaction transaction, list verdicts) except -1:
        cdef Py_ssize_t cancelled = self.settler.take_verdicts(transaction, verdicts)
        transaction.delivering = None
        if self.is_queue and transaction.refused is not None:
            return self.put_back(transaction)
        if not self.settles_each:
            if not transaction.accepted:
                refusal = self.settler.refusal_of(transaction)
                if refusal is not None:
                    return self.refuse(transaction, refusal)
            if cancelled:
                self.counts.numbers[UNFINISHED] += len(transaction.mails)
                self.counts.numbers[IN_DOUBT] += transaction.accepted
                return self.settle(transaction, FAILED)
        return self.write(transaction)

    def _stored(self, Transaction transaction not None, bint set_aside, bint stored):
        self.committed(transaction, set_aside, stored)

    cdef int committed(self, Transaction transaction, bint set_aside, bint stored) except -1:
        """`set_aside`: the bad ones are where they go. `stored`: so are the good ones."""
        return self.settle(transaction, self.settler.count_committed(transaction, set_aside, stored))

    cdef int refuse(self, Transaction transaction, verdict) except -1:
        """Nothing of it is stored, and the client is told why."""
        self.settler.count_not_stored(transaction)
        return self.settle(transaction, verdict)

    cdef int settle(self, Transaction transaction, verdict) except -1:
        """Settle it, with this verdict on all mails that have none of their own."""
        transaction.gateway = None
        self.settler.tell(transaction, verdict)
        if transaction.given is not None and self.deliverer.follow_up(transaction):
            return 0
        return self.release(transaction)

    def _release(self, Transaction transaction not None):
        self.release(transaction)

    cdef int release(self, Transaction transaction) except -1:
        self.active.discard(transaction)
        self.in_flight -= len(transaction.mails)
        self.bytes -= transaction.size
        if self.hand is not None:
            self.hand.leave(transaction)
        transaction.gateway = None
        transaction.released()
        self.notify()
        return self.start() if self.waiting else 0

    def _drop(self, Transaction transaction not None):
        self.drop(transaction)

    cdef int drop(self, Transaction transaction) except -1:
        """It was taken back before anything was done with it."""
        transaction.delivering = None
        self.settler.count_dropped(transaction)
        return self.release(transaction)

    # Waiting for room, or for the end

    async def _wait(self):
        self.change.clear()
        self.is_awaited = True
        await self.change.wait()

    cdef int notify(self) except -1:
        if self.is_awaited:
            self.is_awaited = False
            self.change.set()
        return 0


cdef Py_ssize_t size_of(Mail mail) except -1:
    """Octets that its source has of it."""
    return mail.length() if mail.unread is not None else len(mail.whence.mime)


cdef int forget(Transaction transaction) except -1:
    """Its mails do not belong to it any more."""
    for mail in transaction.mails:
        if (<Mail>mail).transaction is transaction:
            (<Mail>mail).transaction = None
    return 0


cdef bint was_cancelled(list steps) except -1:
    """Whether plugins were not done with all of these."""
    for mail, outcome in steps:
        if outcome is None or outcome is FAIL and isinstance(mail.error, Cancelled):
            return True
    return False


def needs_failed(source, sink):
    """Whether a place for failed mails is needed, as the sink may take a part, of which nobody is told. Both may be classes."""
    return sink.commits_in_parts and source.has_waiting_client and not source.settles_each and not source.single_mail
