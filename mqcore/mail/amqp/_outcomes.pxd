# What was published on a channel, and who is told what became of it.

from libc.stdint cimport uint64_t

from ...amqp._unconfirmed cimport Outcome
from .._counts cimport Row
from ._link cimport Link

cdef class Waiter:
    cdef object take
    cdef object key
    cdef tuple mails                # as `Soon` gave them; None if it was not that
    cdef Soon giver                 # likewise

    cdef int tell(self, Outcome outcome) except -1

cdef class Outcomes:
    cdef Row counts
    cdef Link link                  # that can be published on, as far as is known; None: look for it
    cdef unsigned int channel
    cdef public Py_ssize_t most     # octets that a message may have
    cdef list waiters               # a ring: of publish n at n modulo its size
    cdef readonly uint64_t first    # the oldest that waits, or the next
    cdef uint64_t next
    cdef readonly Py_ssize_t unconfirmed
    cdef dict kinds                 # how many outcomes there were of each kind, but for
    cdef readonly uint64_t acks

    cdef Link find_link(self)
    cdef int add(self, uint64_t tag, Waiter waiter) except -1
    cdef int grow(self) except -1
    cdef Waiter pop(self, uint64_t tag)

cdef class Soon:
    cdef Outcomes outcomes          # None until it is begun
    cdef str exchange
    cdef str queue
    cdef bint raw
    cdef readonly set voided                 # ids of tuples of mails that their source has lost
    cdef bint is_careful            # each mail goes by `deliver`
