# Mails that came in one go.

from libc.stdint cimport uint64_t
from ._mail cimport Mail
from ._spool cimport Spool

cdef class Transaction:
    cdef readonly tuple mails       # not to be changed while C code counts on it
    cdef object gateway             # that has it now
    cdef list steps                 # (mail, outcome) of each mail that plugins are done with
    cdef list good                  # such pairs, of those that go to the sink, and then of those that it has
    cdef dict refused               # mail -> verdict, of those that failed or were rejected; None if there are none
    cdef dict verdicts              # mail -> verdict, of others that are not told the transaction's; likewise
    cdef list bad                   # mails that go to where failed ones do
    cdef tuple delivering           # what the sink's `deliver` has, or is about to get
    cdef tuple given                # what it got
    cdef Py_ssize_t steps_left      # mails that plugins are not done with
    cdef Py_ssize_t size            # octets
    cdef double begun               # when it was offered, s of the monotonic clock
    cdef double given_at            # when the sink got it, where that was by `deliver_soon`; likewise
    cdef Py_ssize_t accepted        # mails that the sink has, for some recipient at least
    cdef Spool spool                # of the bytes of many mails, until the sink takes them
    cdef object receipt             # what is said of those that it has, where the next owner calls them anything
    cdef object timeline            # of it, if somebody wants to see it; else None
    cdef bint was_offered           # to those who may want to see it, by its source
    cdef bint full                  # there was no room for it
    cdef Py_ssize_t discarded       # mails that plugins discarded
    cdef uint64_t digest            # see Hand; 0 as long as it is not known
    cdef unsigned int place         # in a Hand, from 1 on; 0: it is in none
    cdef readonly bint cancelled
    cdef readonly bint committing   # the sink has begun to take it, or has it: too late to take it back

    cpdef object settle(self, list verdicts)
    cpdef object cancel(self)
    cpdef object void(self)
    cdef int released(self) except -1
    cdef int sort(self) except -1
    cdef int discard(self, Mail mail) except -1
    cdef int refuse(self, Mail mail, verdict) except -1
    cdef Py_ssize_t count_failed(self) except -1
    cdef list good_mails(self)
