# Messages of a queue, from when they come until the queue need not have them any more.

from ...amqp._channel cimport Delivery
from .._counts cimport Row
from .._mail cimport Unread
from .._transaction cimport Transaction
from ._ids cimport Done, Ids
from ._link cimport Link

cdef class UnreadRaw(Unread):
    cdef bytes header
    cdef bytes mime
    cdef str id
    cdef bint has_id
    cdef Py_ssize_t place
    cdef double received            # s since 1970; 0: nobody said

cdef class Incoming(Transaction):
    cdef Intake intake
    cdef readonly Link connection
    cdef readonly Delivery delivery
    cdef readonly str id
    cdef readonly bint has_id
    cdef public bint is_void
    cdef public bint is_put_back
    cdef public bint comes_again
    cdef object written             # what `letter` gives

cdef class Intake:
    cdef public Link link           # that messages come by; None while there is none
    cdef public bint is_stopped     # what comes is left to the queue
    cdef public bint counts_acks    # the subscription is to hear of each
    cdef readonly dict open         # delivery -> Incoming or None, of all that the broker waits to hear of
    cdef readonly double last       # when something came, s of the monotonic clock, but for others in the same turn of the loop
    cdef readonly unsigned long long first_deliveries
    cdef readonly unsigned long long redeliveries
    cdef readonly unsigned long long acks
    cdef object gateway
    cdef object subscription
    cdef object call_soon
    cdef Row counts
    cdef Ids ids
    cdef bint tells_results
    cdef bint has_ladder
    cdef bint asks_sink             # whether it has a mail from an earlier run
    cdef bint is_paused             # reading is
    cdef Py_ssize_t bytes           # of what is open
    cdef Py_ssize_t most_bytes
    cdef Py_ssize_t place
    cdef list offered               # Incoming, in this turn of the loop
    cdef Done done

    cdef int receive(self, Delivery delivery) except -1
    cdef Incoming read(self, Delivery delivery)
    cdef Incoming read_other(self, Delivery delivery)
    cdef Incoming make(self, Delivery delivery, const char *message_id, Py_ssize_t size)
    cdef bint is_present(self, Incoming incoming) except -1
    cdef int settle(self, Incoming incoming, verdict) except -1
    cdef int finish(self, Incoming incoming, bint is_over) except -1
    cdef int confirm(self, Link connection, Delivery delivery) except -1
    cdef int drop(self, Link connection, Delivery delivery) except -1
