"""One message that came in by SMTP: through the plugins for each of its recipients, and then all of it to the sink."""

import os
from collections import deque

cimport cython
from cpython.time cimport time
from ..._dispatch cimport Dispatcher, Hook
from .._mail cimport Mail
from .._writer cimport Writer

from ... import FAIL
from ..message import Origin, Rejection
from ...smtp.syntax import printable

FAILED = Rejection(451, "4.3.0 this server has a problem; try again later")


@cython.final
cdef class Transaction:
    """Its mails, one for each recipient, pass through `mq_smtp_in_message`; nothing is stored until all verdicts are in.

    Any failure or temporary rejection is an answer for the client, and nothing is stored. So is the rejection of all.
    Otherwise the accepted go to the sink, the rejected to where failed mails go, and then the client gets its 250.

    If the sink is the next server, the accepted are sent there first, and what it says are verdicts too. Once it has one
    of them nothing can be taken back: then whatever it refuses, if only for now, goes to where failed mails go.
    """

    def __cinit__(self, Desk desk not None, list mails not None, answer):
        self.desk = desk
        self.mails = mails
        self.answer = answer
        self.verdicts = []
        self.open = len(mails)

    cdef str success(self):
        """What the client is told with its 250."""
        if self.delivery is None:
            return f"stored as {(<Mail>self.mails[0]).origin.id}"
        return printable(f"passed on: {self.delivery.success}")

    cdef int begin(self) except -1:
        for mail in self.mails:
            outcome = self.desk.hook.run_one(mail, (), self._take_verdict)
            if outcome is not None:
                self.take_verdict(mail, outcome)
        return 0

    cdef int cancel(self) except -1:
        """The client is gone: take back what plugins hold. What is being stored or sent stays so, though nobody is told."""
        self.cancelled = True
        if self.delivery is not None:
            self.delivery.take_back()
        elif not self.is_storing:
            for mail in self.mails:
                self.desk.dispatcher.cancel(mail)
        return 0

    def _take_verdict(self, mail, outcome):
        self.take_verdict(mail, outcome)

    cdef int take_verdict(self, mail, outcome) except -1:
        self.verdicts.append((mail, outcome))
        self.open -= 1
        return self.judge() if self.open == 0 else 0

    cdef int judge(self) except -1:
        if self.cancelled:
            self.desk.counts.unfinished += len(self.mails)
            return self.finish(None)
        refusal = find_refusal(self.verdicts)
        if refusal is not None:
            return self.refuse(refusal)
        self.is_storing = True
        if self.desk.sender is None:
            self.desk.writer.add(self.verdicts, self._after_storing)
        else:
            self.delivery = self.desk.sender.send(self.verdicts, self._after_sending)
        return 0

    cdef int refuse(self, refusal) except -1:
        self.desk.count_refused(self.verdicts)
        return self.finish(refusal)

    def _after_sending(self, mails, finished, delivered):
        self.verdicts = list(mails)
        refusal = None if delivered else find_refusal(self.verdicts)
        if not finished:
            self.desk.counts.unfinished += len(mails)
            self.finish(FAILED)
        elif refusal is not None:
            self.refuse(refusal)
        else:
            self.desk.writer.add(mails, self._after_storing)

    def _after_storing(self, mails, stored):
        if not stored and self.delivery is not None:
            self.desk.counts.in_doubt += self.delivery.delivered  # the client sends it again
        if stored and self.cancelled:
            self.desk.counts.unanswered += len(mails)
        self.finish(None if stored else FAILED)

    cdef int finish(self, refusal) except -1:
        if not self.cancelled:
            self.answer(refusal)
        return self.desk.release(len(self.mails))


cdef object find_refusal(list verdicts):
    """What the client is told in place of 250, if anything: the first reason to try again later, or that all are rejected."""
    cdef Py_ssize_t rejected = 0
    for mail, outcome in verdicts:
        if outcome is FAIL:
            return FAILED
        rejection = (<Mail?>mail).rejection
        if rejection is not None:
            if rejection.code < 500:
                return rejection
            rejected += 1
    return verdicts[0][0].rejection if rejected == len(verdicts) else None


@cython.final
cdef class Desk:
    """Names mails, and lets transactions begin.

    No more than `max_in_flight` mails are between the clients and the sink.
    """

    def __cinit__(
        self, Dispatcher dispatcher not None, Hook hook not None, Writer writer not None, sender, counts,
        Py_ssize_t max_in_flight
    ):
        self.dispatcher = dispatcher
        self.hook = hook
        self.writer = writer
        self.sender = sender
        self.counts = counts
        self.max_in_flight = max_in_flight
        self.waiting = deque()
        self.name_of_run = os.urandom(8).hex()

    cdef object next_origin(self, bytes mime, envelope, recipient):
        self.mails += 1
        id = f"{self.name_of_run}{self.mails:016x}"
        return tuple.__new__(Origin, (mime, id, self.mails, envelope, time(), None, None, recipient, None, None))

    cdef int submit(self, Transaction transaction) except -1:
        self.counts.read += len(transaction.mails)
        self.waiting.append(transaction)
        return self.start()

    cdef int release(self, Py_ssize_t count) except -1:
        """So many mails are done with."""
        self.in_flight -= count
        return self.start()

    cdef int start(self) except -1:
        cdef Transaction transaction
        if self.is_starting:  # one that is over at once comes back here, and must not nest
            return 0
        self.is_starting = True
        try:
            while self.waiting and self.in_flight < self.max_in_flight:
                transaction = self.waiting.popleft()
                if transaction.cancelled:
                    self.counts.unfinished += len(transaction.mails)
                else:
                    self.in_flight += len(transaction.mails)
                    transaction.begin()
        finally:
            self.is_starting = False
        return 0

    cdef int turn_away(self, Py_ssize_t count, bint failed) except -1:
        """So many mails were refused before they existed."""
        self.counts.read += count
        if failed:
            self.counts.failed += count
        else:
            self.counts.rejected += count
        return 0

    cdef int count_refused(self, list verdicts) except -1:
        """These are not stored, and their client knows."""
        for mail, outcome in verdicts:
            if outcome is FAIL:
                self.counts.failed += 1
            elif mail.rejection is not None:
                self.counts.rejected += 1
            else:
                self.counts.unfinished += 1
        return 0
