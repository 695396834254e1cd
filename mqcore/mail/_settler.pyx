"""What the source of a transaction is told of it, and what is counted and logged."""

import logging

cimport cython
from cpython.time cimport monotonic
from ._counts cimport COMPLETED, CONTINUED, IN_DOUBT, REJECTED, UNANSWERED, UNFINISHED, Row
from ._counts cimport DISCARDED as DISCARDS, FAILED as FAILURES
from ._mail cimport Mail
from ._transaction cimport Transaction

from .. import COMPLETE
from .done import log as mail_log, log_mail
from .verdicts import ACCEPTED, CANCELLED, DISCARDED, FAILED, FULL, Kind, Verdict

log = logging.getLogger(__name__)

cdef object INFO = logging.INFO

# What `isEnabledFor` remembers. The logging module empties it in place whenever a level changes, so looking here is as good as
# asking, and costs a tenth; where another version of it has none, it is asked.
cdef object remembered = getattr(mail_log, "_cache", None)
cdef dict is_enabled = remembered if type(remembered) is dict else {}


cdef bint logs_mails() except -1:
    """Whether there is a line in the log for each mail."""
    enabled = is_enabled.get(INFO)
    return mail_log.isEnabledFor(INFO) if enabled is None else enabled and not mail_log.disabled


@cython.final
cdef class Settler:
    """Decides what a source is told of its transactions, counts what became of their mails, and tells it.

    `sets_aside`: there is a place for mails that failed or were rejected.
    """

    def __cinit__(self, source not None, Row counts not None, refusals not None, bint sets_aside):
        self.source = source
        self.counts = counts
        self.refusals = refusals
        self.has_waiting_client = source.has_waiting_client
        self.settles_each = source.has_waiting_client and source.settles_each
        self.is_queue = source.is_queue
        self.sets_aside = sets_aside

    cdef object refusal_of(self, Transaction transaction):
        """The verdict on all, where one is for all and not all can be accepted; else None."""
        if transaction.refused is None or not self.has_waiting_client or self.settles_each:
            return None
        return refusal_of_all(transaction, self.sets_aside)

    # What the sink says

    cdef Py_ssize_t take_verdicts(self, Transaction transaction, list verdicts) except -1:
        """What it says of each of the good mails. How many it did not take since nobody wanted them any more."""
        if len(verdicts) == 1 and verdicts[0] is ACCEPTED and not self.settles_each:  # as most are
            transaction.accepted += 1
            return 0
        cdef list good = []
        cdef dict told = {} if self.settles_each else None  # where each is told its own
        cdef Py_ssize_t cancelled = 0
        cdef list steps = transaction.good
        cdef Py_ssize_t index
        for index in range(min(len(steps), len(verdicts))):
            step, verdict = steps[index], verdicts[index]
            mail = step[0]
            if verdict.kind is Kind.DISCARDED:
                transaction.discard(<Mail>mail)
                continue
            if verdict.is_good or verdict.partly:
                transaction.accepted += 1
                if transaction.receipt is None and verdict.text:
                    transaction.receipt = verdict if verdict.kind is Kind.ACCEPTED else Verdict.accepted(verdict.text)
            if verdict.is_good:
                good.append(step)
                if told is not None:
                    told[mail] = verdict
            elif verdict.kind is Kind.CANCELLED:
                cancelled += 1
                if told is not None:
                    told[mail] = FAILED
            else:
                self.explain(<Mail>mail, verdict)
                transaction.refuse(<Mail>mail, verdict)
                self.refusals.note_mail("delivery", mail, verdict)
        transaction.good = good
        if self.settles_each:
            if transaction.verdicts is not None:
                told.update(transaction.verdicts)  # what was discarded
            transaction.verdicts = told
            self.counts.numbers[UNFINISHED] += cancelled
        return cancelled

    cdef int explain(self, Mail mail, verdict) except -1:
        """Let the mail say why the sink refused it."""
        if verdict.kind is Kind.FAILED:
            mail.failure = verdict.error
            mail.track()
            return 0
        if verdict.kind is Kind.IN_DOUBT or self.settles_each and verdict.partly and verdict.code < 500:
            self.counts.numbers[IN_DOUBT] += 1
        mail.refusal = verdict.reply
        return 0

    # Figures

    cdef object count_committed(self, Transaction transaction, bint set_aside, bint stored):
        """`set_aside`: the bad ones are where they go. `stored`: so are the good ones. The verdict on those that have none."""
        cdef list bad = transaction.bad, good = transaction.good
        if not set_aside:
            self.counts.numbers[UNFINISHED] += len(bad)
        else:
            self.count_refused(transaction)
        if good:
            if stored:
                self.count_good(good)
            else:
                self.counts.numbers[UNFINISHED] += len(good)
        if (set_aside or not bad) and (stored or not good):
            if transaction.discarded:
                self.counts.numbers[DISCARDS] += transaction.discarded
            if transaction.cancelled and not self.is_queue:  # which knows itself what it offers again
                self.counts.numbers[UNANSWERED] += len(transaction.mails)
            return verdict_on_good(transaction)
        self.count_discarded(transaction)
        if self.has_waiting_client:  # and sends all of it again
            self.counts.numbers[IN_DOUBT] += transaction.accepted
        if set_aside and good:
            self.counts.numbers[IN_DOUBT] += len(bad)
        verdict = FULL if transaction.full else FAILED
        self.note_first(transaction, verdict)
        return verdict

    cdef int count_not_stored(self, Transaction transaction) except -1:
        """All of it was refused."""
        cdef Py_ssize_t refused = self.count_refused(transaction)
        self.counts.numbers[UNFINISHED] += len(transaction.mails) - refused - transaction.discarded
        return self.count_discarded(transaction)

    cdef int count_dropped(self, Transaction transaction) except -1:
        """It was taken back before anything was done with it."""
        if logs_mails():
            log_mail(transaction, [CANCELLED], monotonic() - transaction.begun)
        end_timeline(transaction)
        self.counts.numbers[UNFINISHED] += len(transaction.mails)
        return 0

    cdef Py_ssize_t count_refused(self, Transaction transaction) except -1:
        """Those that failed or were rejected, and how many they are."""
        if transaction.refused is None:
            return 0
        cdef Py_ssize_t failed = transaction.count_failed()
        self.counts.numbers[FAILURES] += failed
        self.counts.numbers[REJECTED] += len(transaction.refused) - failed
        return len(transaction.refused)

    cdef int count_discarded(self, Transaction transaction) except -1:
        """Those that plugins discarded, where the others could not be brought to their end: unless each has a verdict of its
        own, a client that waits sends them again."""
        if self.has_waiting_client and not self.settles_each:
            self.counts.numbers[UNFINISHED] += transaction.discarded
        else:
            self.counts.numbers[DISCARDS] += transaction.discarded
        return 0

    cdef int count_good(self, list steps) except -1:
        cdef Py_ssize_t completed = 0
        for mail, outcome in steps:
            completed += outcome is COMPLETE
            self.bytes_out += (<Mail>mail).length()
        if completed:
            self.counts.numbers[COMPLETED] += completed
        self.counts.numbers[CONTINUED] += len(steps) - completed
        return 0

    cdef int note_refused(self, Transaction transaction) except -1:
        for mail, verdict in transaction.refused.items():
            self.refusals.note_mail("message", mail, verdict)
        return 0

    cdef int note_first(self, Transaction transaction, verdict) except -1:
        """A refusal of all that has no reason in any mail."""
        if self.has_waiting_client:
            mail = <Mail>transaction.mails[0]
            code, text = verdict.reply
            client = None if mail.connection is None else mail.connection.peer
            self.refusals.note("delivery", code, text, client=client, mail=mail.origin.id, sender=mail.envelope)
        return 0

    # What the source is told

    cdef int tell(self, Transaction transaction, verdict) except -1:
        """Settle it, with this verdict on all mails that have none of their own."""
        told = self.verdicts_of(transaction, verdict) if self.settles_each else [verdict] * len(transaction.mails)
        if logs_mails():
            log_mail(transaction, self.verdicts_of(transaction, verdict), monotonic() - transaction.begun)
        if transaction.timeline is not None:
            transaction.timeline.settled(told)
        try:
            transaction.settle(told)
        except Exception:
            log.exception("%s failed", self.source.url)
        if transaction.timeline is not None:
            transaction.timeline.end()
        return 0

    cdef list verdicts_of(self, Transaction transaction, verdict):
        cdef list told = []
        for mail in transaction.mails:
            own = None if transaction.refused is None else transaction.refused.get(mail)
            if own is None and transaction.verdicts is not None:
                own = transaction.verdicts.get(mail)
            told.append(verdict if own is None else own)
        return told


cdef int end_timeline(Transaction transaction) except -1:
    """It was taken back."""
    if transaction.timeline is not None:
        transaction.timeline.end("it was taken back: its client is gone, or the server stops")
    return 0


cdef object verdict_on_good(Transaction transaction):
    if transaction.receipt is not None:
        return transaction.receipt
    return DISCARDED if transaction.discarded and not transaction.good else ACCEPTED


cdef object refusal_of_all(Transaction transaction, bint mixed):
    """The verdict on all, if not all can be accepted: the first reason to try again later, or that all are rejected. If they
    may not be `mixed`, one that is rejected is enough."""
    cdef Py_ssize_t rejected = len(transaction.refused), count = len(transaction.steps)
    cdef object first = None
    for verdict in transaction.refused.values():
        if verdict.code < 500:
            return verdict
        first = first or verdict
    if rejected == count:
        return first
    if mixed:
        return None
    return Verdict.rejected(
        first.code, f"{first.text} (refused for {rejected} of {count} recipients, so nobody gets it)"
    )
