# Storing what is good, and what failed where that goes, in groups.

from ._histogram cimport Histogram
from ._jobs cimport JobThread
from ._transaction cimport Transaction

cdef class Writer:
    cdef object store               # None where mails are not stored but delivered
    cdef object failed
    cdef object done                # called with a transaction, and whether its bad ones are set aside and its good stored
    cdef object dropped             # called with one that was taken back before it was stored
    cdef object on_error
    cdef Histogram seconds          # that each group took
    cdef Histogram sizes            # how many mails it had
    cdef object waiting             # a deque of transactions
    cdef object work                # an asyncio.Event
    cdef set broken                 # stores
    cdef bint blocks
    cdef bint goes_on               # when a store is full
    cdef bint is_queue              # what the mails come from
    cdef bint waits                 # until the store has room: see `hurry`
    cdef list delayed               # transactions for which it had none
    cdef double pause               # s until they are tried again
    cdef object timer
    cdef bint closed
    cdef JobThread jobs             # None where the store has none, or no thread is to be had
    cdef list group                 # transactions that were taken out of `waiting` and are not done with
    cdef bint is_begun              # the store has a job to store these
    cdef double begun               # when that was
    cdef bint was_full              # the store, for that job
    cdef bint is_cancelled          # `run`: no other job is begun
    cdef object crash               # what `run` is to raise

    cdef bint add(self, Transaction transaction) except -1
    cdef bint begin_soon(self) except -1
    cdef int end(self, job) except -1
    cdef list next_group(self)
    cdef int delay(self, Transaction transaction) except -1
    cdef int hurry(self) except -1
    cdef int close(self) except -1
    cdef int give_up(self, store, error) except -1
