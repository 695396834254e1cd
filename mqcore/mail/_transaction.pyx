"""Mails that came in one go."""

from ._mail cimport Mail

from .. import FAIL
from .verdicts import DISCARDED, FAILED, Kind, Verdict


cdef class Transaction:
    """One or more mails that a source offers to a gateway together. A source whose mails are waited for makes a class of
    its own, with `settle`.

    `mails`: one for each recipient. `cancelled`: the source took it back. `committing`: it is too late for that.
    """

    def __init__(self, mails):
        cdef tuple several = tuple(mails)
        if self.mails is not None:
            raise RuntimeError("a transaction has its mails already")
        if not several:
            raise ValueError("a transaction has at least one mail")
        for mail in several:
            if not isinstance(mail, Mail):
                raise TypeError(f"a transaction has mails, not {mail!r}")
        self.mails = several

    cpdef object settle(self, list verdicts):
        """Told once what became of each mail; not of a transaction that was taken back before the commit began."""

    async def put_back(self, verdict):
        """Called once where the source is a queue and the mail was refused or failed, before `settle`. Returns a `PutBack`. It
        is cancelled when a run that was stopped takes too long: then the mail is LEFT."""
        raise NotImplementedError("this transaction is of no queue")

    cpdef object void(self):
        """The source has lost it, and will offer it again: drop it as soon as its steps are over, unless the sink has it."""
        self.cancelled = True
        if self.gateway is not None:
            self.gateway.void(self)

    cpdef object cancel(self):
        """Take it back, as its client is gone. What is being stored or sent stays so."""
        if not self.cancelled:
            self.cancelled = True
            if self.gateway is not None:
                self.gateway.cancel(self)

    cdef int released(self) except -1:
        """Nothing is done with it any more: its mails are let go."""
        return 0

    cdef int sort(self) except -1:
        """Which mails are good; the others are refused."""
        if len(self.steps) == 1 and is_good(self.steps[0]):  # as most are
            self.good = self.steps
            return 0
        self.good = []
        for step in self.steps:
            mail, outcome = step
            rejection = (<Mail?>mail).refusal
            if outcome is FAIL:
                self.refuse(<Mail>mail, FAILED)
            elif (<Mail>mail).discarded:
                self.discard(<Mail>mail)
            elif rejection is not None:
                self.refuse(<Mail>mail, Verdict.refused(rejection))
            else:
                self.good.append(step)
        return 0

    cdef int discard(self, Mail mail) except -1:
        self.discarded += 1
        if self.verdicts is None:
            self.verdicts = {}
        self.verdicts[mail] = DISCARDED
        return 0

    cdef int refuse(self, Mail mail, verdict) except -1:
        if self.refused is None:
            self.refused = {}
        self.refused[mail] = verdict
        return 0

    cdef Py_ssize_t count_failed(self) except -1:
        """How many of the refused failed."""
        cdef Py_ssize_t failed = 0
        for verdict in self.refused.values():
            failed += verdict.kind is Kind.FAILED
        return failed

    cdef list good_mails(self):
        return [mail for mail, _ in self.good]


cdef bint is_good(tuple step) except -1:
    """Whether plugins let the mail go on."""
    cdef Mail mail = step[0]
    return step[1] is not FAIL and not mail.discarded and mail.refusal is None
