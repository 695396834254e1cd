# Giving what is good to a sink.

from ._histogram cimport Histogram
from ._transaction cimport Transaction

cdef class Deliverer:
    cdef object sink
    cdef object delivered           # called with a transaction, and what the sink says of each of its good mails
    cdef object dropped             # called with one that was taken back before the sink was called
    cdef object released            # called with one of which the sink has no more to do
    cdef object on_error
    cdef Histogram seconds          # that each transaction took
    cdef Histogram sizes            # how many mails it had
    cdef object tasks               # an asyncio.TaskGroup
    cdef dict transactions          # of tasks
    cdef set begun                  # transactions that the sink has by `deliver_soon`
    cdef object answer              # `_answer`, made once
    cdef object deliver_soon        # the sink's, looked up once; None if it has none
    cdef bint follows_up            # whether it may have more to do with what it has taken

    cdef list add(self, Transaction transaction)
    cdef int start(self, Transaction transaction, delivering) except -1
    cdef list give(self, Transaction transaction)
    cdef list note(self, Transaction transaction, verdict)
    cdef object verdict_on(self, error)
    cdef bint follow_up(self, Transaction transaction) except -1
    cdef int cut(self) except -1
