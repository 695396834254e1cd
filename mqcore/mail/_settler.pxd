# What the source of a transaction is told of it, and what is counted.

from ._counts cimport Row
from ._mail cimport Mail
from ._transaction cimport Transaction

cdef class Settler:
    cdef object source
    cdef Row counts
    cdef object refusals
    cdef readonly unsigned long long bytes_out  # of the mails that the sink has
    cdef bint has_waiting_client        # see Source
    cdef bint settles_each              # likewise, where a client waits
    cdef bint is_queue                  # see Source
    cdef bint sets_aside                # there is a place for failed mails

    cdef object refusal_of(self, Transaction transaction)
    cdef Py_ssize_t take_verdicts(self, Transaction transaction, list verdicts) except -1
    cdef int explain(self, Mail mail, verdict) except -1
    cdef object count_committed(self, Transaction transaction, bint set_aside, bint stored)
    cdef int count_not_stored(self, Transaction transaction) except -1
    cdef int count_dropped(self, Transaction transaction) except -1
    cdef Py_ssize_t count_refused(self, Transaction transaction) except -1
    cdef int count_discarded(self, Transaction transaction) except -1
    cdef int count_good(self, list steps) except -1
    cdef int note_refused(self, Transaction transaction) except -1
    cdef int note_first(self, Transaction transaction, verdict) except -1
    cdef int tell(self, Transaction transaction, verdict) except -1
    cdef list verdicts_of(self, Transaction transaction, verdict)

cdef int end_timeline(Transaction transaction) except -1
