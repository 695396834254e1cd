# A step that is looked at: what each plugin did in it, and when.

from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route
from ._dispatch cimport Runner
from ._message cimport Message

cdef class Trace(Route):
    # A route of its own: where a retry finds the chain to begin again with.
    cdef readonly list calls
    cdef readonly object outcome
    cdef readonly str error
    cdef readonly tuple not_called
    cdef readonly Py_ssize_t left_out
    cdef readonly double started
    cdef readonly double seconds
    cdef object look
    cdef Py_ssize_t most
    cdef Runner runner              # None until it is used
    cdef Route hook
    cdef Chain rest                 # one without plugins, for when the step has ended
    cdef bint over                  # or not begun: nothing is noted
    cdef uint64_t begun             # ns, as are the other times
    cdef tuple names                # of the plugins of the chain that it is in,
    cdef Py_ssize_t place           # and which of them was called last; -1: none was
    cdef bint in_call               # that call is not noted yet
    cdef uint64_t called            # when it began,
    cdef uint64_t returned          # and returned; 0: not yet, or it is a C function
    cdef uint64_t holds_before      # that had begun by then, of the whole dispatcher
    cdef str raised                 # what it raised

    cdef int open(self, Runner runner, Route hook, Message message) except -1
    cdef int close(self) except -1
    cdef void end(self, Message message, object outcome) noexcept
    cdef void enter(self, tuple names, Py_ssize_t place, Message message) noexcept
    cdef void leave(self, object raised) noexcept
    cdef void lost(self) noexcept
    cdef uint64_t now(self) noexcept
    cdef int note_call(self, str verdict, uint64_t now, Message message, str error) except -1
    cdef tuple look_at(self, Message message)

cdef object new_ended(Trace trace, object done)
cdef Chain chain_of(Trace trace, Chain chain)
