# The way of a message through a chain of plugins.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route
from ._holds cimport HoldTable
from ._message cimport Counters, Drops, Entry, Message
from ._task_pool cimport TaskPool
from .loop._reactor cimport Caller, Reactor

cdef enum:
    MOST_ARGUMENTS = 16             # of a hook, with context and message
    SAMPLE_EVERY = 256              # steps; one of them is timed

cdef class Runner:
    """What the functions here need of one dispatcher: a part of the dispatcher."""
    cdef Reactor reactor
    cdef HoldTable holds
    cdef unsigned int max_retries
    cdef unsigned int until_sample  # steps until the next one that is timed
    cdef bint closed                # or closing
    cdef TaskPool tasks             # of coroutine hooks; None: there were none yet
    cdef Caller *calling            # who has the loop now: see LoopState; atomic
    cdef Caller done                # whose the `done` of a step is

cdef Runner new_runner(Reactor reactor, HoldTable holds)

cdef inline bint is_sampled(unsigned int *until_sample) noexcept nogil:
    """Whether the hooks that are called now are to be timed."""
    if until_sample[0] == 0:
        until_sample[0] = SAMPLE_EVERY
        return True
    until_sample[0] -= 1
    return False

# For hooks, dispatchers and streams; and for native/, which calls hooks in its own way.
cdef PyObject *begin(Runner runner, Chain chain, Message message, tuple args, object done, object variables) noexcept
cdef PyObject *begun(
    Runner runner, Chain chain, Message message, int decision, tuple args, object done, object variables,
    Drops *drops) noexcept
cdef int proceed(Runner runner, Message message, Chain chain, int decision, Drops *drops) noexcept
cdef void resume(Runner runner, Message message) noexcept
cdef int interpret(Runner runner, Message message, object value, Drops *drops) noexcept
cdef int hook_raised(Runner runner, Message message, PyObject *raised, Drops *drops) noexcept
cdef void add_sample(Counters *counters, uint64_t ns) noexcept nogil
cdef bint cancel_step(Runner runner, Message message) noexcept
cdef list begin_all(
    Runner runner, Route route, tuple messages, tuple args, object done, list outcomes, object variables)
cdef void end_all_steps(Runner runner) noexcept
cdef bint timeout_phase(void *owner) noexcept
cdef bint resume_phase(void *owner) noexcept
