"""Mails that came in one go."""

from ._mail cimport Mail

from .. import FAIL
from .verdicts import FAILED, Verdict


cdef class Transaction:
    """One or more mails that a source offers to a gateway together. A source whose mails are waited for makes a class of
    its own, with `settle`.

    `mails`: one for each recipient. `cancelled`: the source took it back. `committing`: it is too late for that.
    """

    def __init__(self, mails):
        self.mails = tuple(mails)
        if not self.mails:
            raise ValueError("a transaction has at least one mail")
        for mail in self.mails:
            if not isinstance(mail, Mail):
                raise TypeError(f"a transaction has mails, not {mail!r}")

    cpdef object settle(self, list verdicts):
        """Told once what became of each mail; not of a transaction that was taken back before the commit began."""

    cpdef object cancel(self):
        """Take it back, as whoever sent it is gone. What is being stored or sent stays so."""
        if not self.cancelled:
            self.cancelled = True
            if self.gateway is not None:
                self.gateway.take_back(self)

    cdef int sort(self, bint each) except -1:
        """Which mails are good, and which are not; with `each`, the latter are refused one by one."""
        cdef list bad = []
        self.good = []
        for step in self.steps:
            mail, outcome = step
            if (<Mail?>mail).rejection is not None or outcome is FAIL:
                bad.append(mail)
            else:
                self.good.append(step)
        if each and bad:
            self.alone = self.alone or {}
            for mail, outcome in self.steps:
                rejection = (<Mail>mail).rejection
                if outcome is FAIL:
                    self.alone[mail] = FAILED
                elif rejection is not None:
                    self.alone[mail] = Verdict.refused(rejection)
        self.bad = [] if each else bad
        return 0
