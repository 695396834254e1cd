# Native plugins: their hooks in a chain, and what they hold.

from cpython.object cimport PyObject

from libc.stdint cimport uint64_t

from ._arguments cimport Arguments
from ._slots cimport GENERATION, LAST_GENERATIONS, Slot, Table, generation_of
from ..loop._atomic cimport get, set
from .._dispatch cimport Runner
from .._chain cimport Chain
from .._message cimport Drops, Entry, Message, NativeSide

cdef struct Inside:
    # Where a thread was before it went into native code.
    void *current
    PyObject *message
    void *frame

cdef inline bint is_exhausted(Slot *slot) noexcept nogil:
    """Whether its generations are used up: let go, it is retired when its turn comes."""
    return generation_of(get(&slot.word)) >> 24 == LAST_GENERATIONS

cdef inline void new_generation(Slot *slot) noexcept nogil:
    set(&slot.word, ((get(&slot.word) >> 32) + GENERATION) << 32)

cdef int call_native(NativeSide side, Message message, Entry *entry, bint timed, Drops *drops) noexcept
cdef Py_ssize_t run_many_native(
    NativeSide side, Chain chain, tuple messages, Py_ssize_t index, list outcomes, object done, object variables) noexcept
cdef void end_native_hold(void *native) noexcept
cdef void enter(Table *table, void *context, PyObject *message, Inside *before) noexcept nogil
cdef void leave(Table *table, Inside *before) noexcept nogil
cdef void give(void *handle, int decision, void *caller) noexcept nogil
cdef int keep(Slot *slot, object value) except -1
cdef void hold_by(Message message, Slot *slot) noexcept nogil
cdef void put_back(Table *table, Slot *slot) noexcept nogil
cdef Entry *call_hooks(
    Runner runner, Message message, Entry *entry, Slot *slot, Arguments *arguments, bint timed,
    bint *taken) noexcept nogil

# Here so that the compiler keeps them out of the calls of hooks, which they would slow down.
cdef Slot *make_ready(
    Runner runner, Table *table, Message message, Arguments *arguments, int *decision, Drops *drops) noexcept
cdef int decide(Runner runner, Message message, Slot *slot, bint taken, bint *kept, Drops *drops) noexcept
cdef Entry *call_timed(
    Runner runner, Message message, Entry *entry, void *handle, uint64_t *word, Arguments *arguments,
    bint *taken) noexcept nogil
