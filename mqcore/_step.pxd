# The steps that messages take through chains of plugins.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route
from ._message cimport Control, Counters, Entry, Message

cdef enum:
    MOST_ARGUMENTS = 16             # of a hook, with context and message
    SAMPLE_EVERY = 256              # steps; one of them is timed

cdef class Steps(Control):
    """What takes messages through chains: the base of the dispatcher."""
    cdef unsigned int max_retries
    cdef unsigned int until_sample  # steps until the next one that is timed

    cdef PyObject *begin(self, Chain chain, Message message, tuple args, object done) except NULL
    cdef PyObject *begun(self, Chain chain, Message message, int verdict, tuple args, object done) except NULL
    cdef list begin_all(self, Route route, list messages, tuple args, object done)
    cdef int proceed(self, Message message, Chain chain, int verdict) noexcept
    cdef int advance(self, Message message, Chain chain, Entry *entry) noexcept
    cdef int returned(self, Message message, PyObject *result) noexcept
    cdef int judge(self, Message message, object value) noexcept
    cdef int leave_hook(self, Message message, int verdict) noexcept
    cdef int settle(self, Message message, object value, int early) noexcept
    cdef int hook_raised(self, Message message, object error) noexcept
    cdef int start_over(self, Message message, Route route) noexcept
    cdef int broke_a_rule(self, Message message, object error) noexcept
    cdef PyObject *finish(self, Message message, int verdict) noexcept
    cdef void conclude(self, Message message, object outcome) noexcept
    cdef int start_coroutine(self, Message message, object coroutine) noexcept
    cdef void coroutine_ended(self, Message message, object task) noexcept
    cdef void end_step(self, Message message, int verdict, object error) noexcept
    cdef bint cancel_step(self, Message message) noexcept
    cdef void end_open_steps(self) noexcept

cdef inline bint is_sampled(unsigned int *until_sample) noexcept nogil:
    """Whether the hooks that are called now are to be timed."""
    if until_sample[0] == 0:
        until_sample[0] = SAMPLE_EVERY
        return True
    until_sample[0] -= 1
    return False

cdef void add_sample(Counters *counters, uint64_t ns) noexcept nogil
