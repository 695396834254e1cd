# Native plugins: their hooks in a chain, and what they hold.

cimport cython
from cpython.object cimport PyObject

from libc.stdint cimport uint64_t

from ._arguments cimport Arguments
from ._slots cimport (
    FREE, GENERATION, LAST_GENERATIONS, Slot, Table, generation_of, is_open, set_object, set_pointer, set_slot, set_thread,
    store_int, word_of)
from ._queue cimport has_new
from ..loop._atomic cimport get, set
from ..loop._reactor cimport request_nogil_tick
from .._dispatch cimport Runner
from .._chain cimport Chain
from .._message cimport Drops, Entry, Message, NativeSide

cdef extern from *:
    """
    /* For the compiler alone: what a signal handler does is seen by the thread that it interrupts. */
    #define mqcore_signal_fence() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    """
    void signal_fence "mqcore_signal_fence"() noexcept nogil

cdef struct NativeFrame:
    # Where a thread was before it went into native code.
    void *current
    PyObject *message
    Slot *step
    void *frame


@cython.nonecheck(False)
cdef inline void enter(
        Table *table, void *context, PyObject *message, Slot *step, unsigned long thread, NativeFrame *before) noexcept nogil:
    """This thread, the dispatcher's, is about to call native code: for a context, or for the message of a step."""
    if table.inside == 0:
        (<Runner>table.owner).holds.lists.fast_path_off = False
    before.current = table.current
    before.message = table.message
    before.step = table.step
    before.frame = table.frame
    set_pointer(&table.current, context)
    set_object(&table.message, message)
    set_slot(&table.step, step)
    table.frame = before
    set_thread(&table.thread, thread)
    store_int(&table.inside, table.inside + 1)


@cython.nonecheck(False)
cdef inline void leave(Table *table, NativeFrame *before) noexcept nogil:
    """Back from it. What was given back or recorded in it, be it by a signal handler, needs a tick."""
    cdef int inside = table.inside - 1
    cdef bint open = is_open(table)
    set_pointer(&table.current, before.current)
    set_object(&table.message, before.message)
    set_slot(&table.step, before.step)
    table.frame = before.frame
    store_int(&table.inside, inside)
    signal_fence()
    # From here on a table that was closed may be another dispatcher's.
    if open and inside == 0 and (has_new(&table.given) or has_new(&table.records)):
        request_nogil_tick(&(<Runner>table.owner).reactor.state)


cdef inline bint is_exhausted(Slot *slot) noexcept nogil:
    """Whether its generations are used up: let go, it is retired when its turn comes."""
    return generation_of(get(&slot.word)) >> 24 == LAST_GENERATIONS

cdef inline void new_generation(Slot *slot) noexcept nogil:
    set(&slot.word, word_of(generation_of(get(&slot.word)) + GENERATION, FREE))

cdef int call_native(NativeSide side, Message message, Entry *entry, bint timed, Drops *drops) noexcept
cdef Py_ssize_t run_many_native(
    NativeSide side, Chain chain, tuple messages, Py_ssize_t index, list outcomes, object done, object variables) noexcept
cdef void end_native_hold(void *native) noexcept
cdef int claim_given(Message message, Drops *drops) noexcept
cdef void give_back_by(void *handle, int decision, const char *reason, void *caller) noexcept nogil
cdef void drop_kept(Slot *slot) noexcept
cdef int keep(Slot *slot, object value) except -1
cdef void hold_by(Message message, Slot *slot) noexcept nogil
cdef void put_back(Table *table, Slot *slot) noexcept nogil
cdef Entry *call_hooks(
    Runner runner, Message message, Entry *entry, Slot *slot, Arguments *arguments, bint timed,
    bint *taken) noexcept nogil

# Here so that the compiler keeps them out of the calls of hooks, which they would slow down.
cdef Slot *make_ready(
    Runner runner, Table *table, Message message, Arguments *arguments, int *decision, Drops *drops) noexcept
cdef int decide(Runner runner, Message message, Slot *slot, bint taken, bint *has_slot, Drops *drops) noexcept
cdef Entry *call_timed(
    Runner runner, Message message, Entry *entry, Slot *slot, const Arguments *arguments, bint counted,
    bint *taken) noexcept nogil
