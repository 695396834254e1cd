# What a host uses: hooks, to run messages through, and the dispatcher.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route
from ._changes cimport ActivePlugins
from ._holds cimport HoldTable
from ._message cimport Books, Counters, Drops, Entry, Message
from .loop._reactor cimport Reactor

cdef enum:
    MOST_ARGUMENTS = 16             # of a hook, with context and message
    SAMPLE_EVERY = 256              # steps; one of them is timed

cdef enum Life:
    # Of a dispatcher.
    NEW = 0
    OPENING = 1                     # its plugins are being initialized
    OPEN = 2
    ENDED = 3

cdef class Hook(Route):
    cdef readonly object spec
    cdef readonly Dispatcher dispatcher
    cdef Py_ssize_t extra           # how many arguments it has after context and message

    cdef int check_awaitable(self) except -1
    cdef object variables_for(self, Chain chain)
    cdef int check_call(self, tuple args, object done) except -1
    cpdef object run_one(self, Message message, tuple args, object done)

cdef class Dispatcher:
    cdef Reactor reactor
    cdef HoldTable holds
    cdef ActivePlugins active
    cdef unsigned int max_retries
    cdef unsigned int until_sample  # steps until the next one that is timed
    cdef int life                   # Life
    cdef bint closed                # or closing
    cdef bint ending_now            # close() is under way
    cdef object ending
    cdef object __weakref__

    cpdef Books counts(self)
    cdef int open(self) except -1
    cdef int end(self) except -1

cdef inline bint is_sampled(unsigned int *until_sample) noexcept nogil:
    """Whether the hooks that are called now are to be timed."""
    if until_sample[0] == 0:
        until_sample[0] = SAMPLE_EVERY
        return True
    until_sample[0] -= 1
    return False

# For streams, and for native/, which calls hooks in its own way.
cdef PyObject *begin(
    Dispatcher dispatcher, Chain chain, Message message, int before, tuple args, object done, object variables) noexcept
cdef PyObject *begun(
    Dispatcher dispatcher, Chain chain, Message message, int decision, tuple args, object done, object variables,
    Drops *drops) noexcept
cdef int proceed(Dispatcher dispatcher, Message message, Chain chain, int decision, Drops *drops) noexcept
cdef void resume(Dispatcher dispatcher, Message message) noexcept
cdef int interpret(Dispatcher dispatcher, Message message, object value, Drops *drops) noexcept
cdef int hook_raised(Dispatcher dispatcher, Message message, PyObject *raised, Drops *drops) noexcept
cdef void add_sample(Counters *counters, uint64_t ns) noexcept nogil
cdef bint cancel_step(Dispatcher dispatcher, Message message) noexcept
cdef str in_step(Message message)
