"""What the server counts of all its connections."""

from collections import Counter

cimport cython
from .._histogram cimport Histogram

cdef tuple NAMES = ("connect", "secure", "authenticate", "mailfrom", "rcptto", "message")  # that of DATA comes with the mail


@cython.final
cdef class SmtpCounters:
    """`accepted`: replies that said yes, by stage. `transactions`: seconds from MAIL to the reply to
    the message. `refused`: connections, by why. `logins`: by result. `handshakes`: of TLS, by version and result."""

    def __cinit__(self):
        self.transactions = Histogram(1e-3)
        self.refused = Counter()
        self.logins = Counter()
        self.handshakes = Counter()

    @property
    def accepted(self):
        cdef dict accepted = {}
        cdef int stage
        for stage in range(STAGES):
            accepted[NAMES[stage]] = self.numbers[stage]
        return accepted
