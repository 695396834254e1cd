# Giving what is good to a sink that takes it by a coroutine.

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
    cdef bint is_instant            # see Sink
    cdef bint follows_up            # whether it may have more to do with what it has taken

    cdef int add(self, Transaction transaction) except -1
    cdef int start(self, Transaction transaction, delivering) except -1
    cdef bint give(self, Transaction transaction) except -1
    cdef bint follow_up(self, Transaction transaction) except -1
    cdef int cut(self) except -1
