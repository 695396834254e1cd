"""What was published on one channel and has not been confirmed: each publish has one outcome, whatever happens."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from . import errors
from .errors import ProtocolError

cdef enum State:
    OVER = 0
    OPEN
    RETURNED


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Outcome:
    """What became of a publish. There is one for each, told apart by channel and tag.

    `kind`: "ack", the broker has it, and so do the queues that it goes to; "nack", it does not; "returned", it goes to no
    queue, with the broker's `code` and `text`; "in doubt", the channel or the connection ended before the broker said.
    """

    def __repr__(self):
        return f"<Outcome {self.kind} of publish {self.tag} on channel {self.channel}>"


cdef Outcome new_outcome(unsigned int channel, uint64_t tag, str kind):
    cdef Outcome outcome = Outcome.__new__(Outcome)
    outcome.channel = channel
    outcome.tag = tag
    outcome.kind = kind
    outcome.text = ""
    return outcome


@cython.final
@cython.no_gc_clear
cdef class Unconfirmed:

    def __cinit__(self, unsigned int channel):
        self.channel = channel
        self.first = self.next = 1
        self.reasons = {}

    def __dealloc__(self):
        free(self.states)

    cdef int make_room(self) except -1:
        """For one more."""
        cdef Py_ssize_t capacity = max(2 * self.capacity, 256)
        cdef uint8_t *states
        cdef uint64_t tag
        if <Py_ssize_t>(self.next - self.first) < self.capacity:
            return 0
        states = <uint8_t *>malloc(capacity)
        if states == NULL:
            raise MemoryError
        memset(states, OVER, capacity)
        for tag in range(self.first, self.next):
            states[tag & (capacity - 1)] = self.states[tag & (self.capacity - 1)]
        free(self.states)
        self.states = states
        self.capacity = capacity
        return 0

    cdef uint64_t add(self) noexcept:
        """The tag of one more, for which there is room."""
        cdef uint64_t tag = self.next
        self.states[tag & (self.capacity - 1)] = OPEN
        self.next += 1
        self.count += 1
        return tag

    cdef int take_back(self, uint64_t tag, int code, str text) except -1:
        """It came back; the confirm for it comes later."""
        if not self.first <= tag < self.next or self.states[tag & (self.capacity - 1)] != OPEN:
            raise ProtocolError(errors.COMMAND_INVALID, f"basic.return of what was not published on channel {self.channel}")
        self.reasons[tag] = (code, text)
        self.states[tag & (self.capacity - 1)] = RETURNED
        return 0

    cdef int confirm(self, uint64_t tag, bint multiple, str kind, list events) except -1:
        """The broker says what became of this, and of all before it if `multiple`."""
        cdef uint64_t one
        if multiple and tag == 0:
            tag = self.next - 1
        if tag >= self.next or not multiple and (tag < self.first or self.states[tag & (self.capacity - 1)] == OVER):
            text = f"basic.{kind} of {tag}, which does not wait for it on channel {self.channel}"
            raise ProtocolError(errors.COMMAND_INVALID, text)
        if not multiple:
            self.end_one(tag, kind, events)
        else:
            for one in range(self.first, tag + 1):
                if self.states[one & (self.capacity - 1)] != OVER:
                    self.end_one(one, kind, events)
        while self.first < self.next and self.states[self.first & (self.capacity - 1)] == OVER:
            self.first += 1
        return 0

    cdef int end_one(self, uint64_t tag, str kind, list events) except -1:
        cdef bint returned = self.states[tag & (self.capacity - 1)] == RETURNED
        cdef Outcome outcome = new_outcome(self.channel, tag, "returned" if returned else kind)
        if returned:
            outcome.code, outcome.text = self.reasons.pop(tag)
        events.append(outcome)
        self.states[tag & (self.capacity - 1)] = OVER
        self.count -= 1
        return 0

    cdef int end_all(self, list events) except -1:
        """Nothing more will be said."""
        return self.confirm(0, True, "in doubt", events) if self.count else 0
