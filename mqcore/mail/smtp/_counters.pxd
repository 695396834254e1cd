# What the server counts of all its connections.

from .._histogram cimport Histogram

cdef enum:
    STAGES = 6              # of a connection

cdef class SmtpCounters:
    cdef unsigned long long numbers[STAGES]
    cdef readonly Histogram transactions
    cdef readonly object refused
    cdef readonly object logins
    cdef readonly object handshakes
