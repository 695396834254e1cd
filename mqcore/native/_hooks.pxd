# Native plugins: their hooks in a chain, and what they hold.

from cpython.object cimport PyObject

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

from ._slots cimport GENERATION, LAST_GENERATIONS, Slot, Table, generation_of
from ..loop._atomic cimport get, set
from .._dispatch cimport Runner
from .._message cimport Drops, Entry, Message

cdef enum Signature:
    # Of a hook's C function, in NativeFunction.kind.
    OF_CONNECTION = 0       # (context, connection)
    OF_MESSAGE = 1          # (context, connection, message)
    OF_ADDRESS = 2          # (context, connection, address)
    OF_DATA = 3             # (context, connection, mime, size)
    OF_LOGIN = 4            # (context, connection, login, size, password, size)

cdef extern from *:
    """
    typedef struct {
        const char *first, *second;
        size_t first_size, second_size;
    } mqcore_arguments;
    """
    ctypedef struct Arguments "mqcore_arguments":
        # Of a hook beside its handles, as C has them.
        const char *first
        const char *second
        size_t first_size
        size_t second_size

cdef struct Inside:
    # Where a thread was before it went into native code.
    void *current
    PyObject *message
    void *frame

cdef inline bint is_worn(Slot *slot) noexcept nogil:
    """Whether its generations are used up: let go, it is retired when its turn comes."""
    return generation_of(get(&slot.word)) >> 24 == LAST_GENERATIONS

cdef inline void new_generation(Slot *slot) noexcept nogil:
    set(&slot.word, ((get(&slot.word) >> 32) + GENERATION) << 32)

cdef void enter(Table *table, void *context, PyObject *message, Inside *before) noexcept nogil
cdef void leave(Table *table, Inside *before) noexcept nogil
cdef void give(void *handle, int decision, void *caller) noexcept nogil
cdef int keep(Slot *slot, object value) except -1
cdef void hold_by(Message message, Slot *slot) noexcept nogil
cdef void put_back(Table *table, Slot *slot) noexcept nogil
cdef bint find_arguments(PyObject *values, int kind, Arguments *arguments) noexcept nogil
cdef Entry *call_hooks(
    Runner runner, Message message, Entry *entry, Slot *slot, Arguments *arguments, bint timed,
    bint *taken) noexcept nogil

# Here so that the compiler keeps them out of the calls of hooks, which they would slow down.
cdef Slot *make_ready(Runner runner, Message message, Arguments *arguments, int *decision, Drops *drops) noexcept
cdef int decide(Runner runner, Message message, Slot *slot, bint taken, bint *kept, Drops *drops) noexcept
cdef Entry *call_timed(
    Runner runner, Message message, Entry *entry, void *handle, uint64_t *word, Arguments *arguments,
    bint *taken) noexcept nogil
