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

    cpdef object cancel(self):
        """Take it back, as whoever sent it is gone. What is being stored or sent stays so."""
        if not self.cancelled:
            self.cancelled = True
            if self.gateway is not None:
                self.gateway.take_back(self)

    cdef int released(self) except -1:
        """Nothing is done with it any more: its mails are let go."""
        return 0

    cdef int sort(self, bint each) except -1:
        """Which mails are good, and which are not; with `each`, each of the latter has a verdict of its own."""
        self.good = []
        self.bad = []
        for step in self.steps:
            mail, outcome = step
            rejection = (<Mail?>mail).refusal
            if rejection is None and outcome is not FAIL:
                self.good.append(step)
            elif each:
                if self.verdicts is None:
                    self.verdicts = {}
                self.verdicts[mail] = FAILED if outcome is FAIL else Verdict.refused(rejection)
            else:
                self.bad.append(mail)
        return 0

    cdef list good_mails(self):
        return [mail for mail, _ in self.good]
