# The numbers that a run counts, in memory that may be shared with another process.

from libc.stdint cimport uint64_t

cdef enum:
    READ
    PRESENT
    CONTINUED
    COMPLETED
    FAILED
    REJECTED
    DISCARDED
    RETRIED
    UNFINISHED
    UNANSWERED
    IN_DOUBT
    REDELIVERED
    RETURNED
    NACKED
    RECONNECTS
    IN_CLEAR
    ALL                         # how many there are

cdef class Row:
    cdef uint64_t *numbers
    cdef uint64_t own[ALL]      # what that is if nothing is shared
    cdef Py_buffer shared
    cdef bint is_shared
