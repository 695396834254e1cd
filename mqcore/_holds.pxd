# Who has control of which message: the held ones by timeout, those that were given back, and the books.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from .loop._list cimport after
from .loop._reactor cimport Reactor
from ._message cimport Counters, Drops, Entry, HoldLists, Message, StepCounts, TimeoutBucket, message_at

cdef struct Batch:
    # Messages of one run_many() that native hooks are called for, without books: these are what is in here, until it ends. It
    # begins and ends with the GIL.
    Entry *entries          # of their chain
    PyObject **messages     # borrowed: those that are in no books yet
    uint64_t count
    uint64_t passed         # how many of them are through; atomic. Of the next one `Message.entry` says where it is
    Batch *outer            # in whose hook it was begun

cdef class HoldTable:
    """The messages of one dispatcher that are held or were given back; a part of the dispatcher."""
    cdef HoldLists lists
    cdef Reactor reactor
    cdef Batch *batch               # that is under way, or NULL
    cdef TimeoutBucket *scanned     # where `lists.cursor` is
    cdef uint64_t scanned_until     # what is held since later is left out
    cdef Py_ssize_t scanned_most    # so many are enough of each bucket; negative: all
    cdef Py_ssize_t scanned_left    # and so many of this one

    cdef int open(self) except -1
    cdef void close(self) noexcept
    cdef TimeoutBucket *bucket_of(self, double seconds) except NULL
    cdef void begin_batch(self, Batch *batch) noexcept
    cdef void end_batch(self, Batch *batch, Entry *stopped) noexcept
    cdef StepCounts snapshot(self) noexcept
    cdef uint64_t calls_in_batches(self, Counters *counters) noexcept
    cdef void end_and_queue(self, Message message, Drops *drops) noexcept
    cdef void collect(self, Message message) noexcept
    cdef bint collect_one(self) noexcept
    cdef bint has_queued(self) noexcept
    cdef bint has_dead(self) noexcept
    cdef bint replace_dead(self) noexcept
    cdef void use_stand_in_for(self, PyObject *dead) noexcept
    cdef PyObject *take_queued(self) noexcept
    cdef PyObject *take_due(self, uint64_t now) noexcept
    cdef PyObject *next_due(self, uint64_t *due) noexcept
    cdef PyObject *take_held(self, PyObject *each) noexcept
    cdef PyObject *take_any(self) noexcept
    cdef PyObject *first_held(self) noexcept
    cdef void arm_next(self) noexcept
    cdef void refill(self) noexcept

cdef void count_given(Counters *counters, int decision) noexcept nogil
cdef bint has_pending(void *table) noexcept nogil
cdef void stop_when_idle(void *table) noexcept nogil
cdef HoldTable new_hold_table(Reactor reactor)


@cython.nonecheck(False)
cdef inline PyObject *next_in_bucket(PyObject *each) noexcept:
    return message_at(after(&(<Message>each).entry.bucket.held, &(<Message>each).link))
