# What native plugins have to say, and what has to be said of them: to be logged by the dispatcher.

from .._dispatch cimport Runner
from ._slots cimport Slot, Table, get_pointer

cdef extern from *:
    """
    #include <dlfcn.h>

    /* Where in memory the file is that has this address; NULL: in none. */
    static inline void *mqcore_base(void *address)
    {
        Dl_info info;
        return address != NULL && dladdr(address, &info) ? info.dli_fbase : NULL;
    }
    """
    void *base_of "mqcore_base"(void *address) noexcept nogil

cdef inline bint is_of_another(Table *table, void *context) noexcept nogil:
    """Whether this thread is in a call of another plugin than that with this MQ_Context. Other threads are not known."""
    return get_pointer(&table.current) != context and is_in_another(table, context)

cdef void record_misuse_of(void *handle, const char *what, void *caller) noexcept nogil
cdef void record_late(Table *table, Slot *slot) noexcept nogil
cdef void write_log(int priority, const char *text, void *caller) noexcept nogil
cdef bint is_in_another(Table *table, void *context) noexcept nogil
cdef void *caller_in(Table *table) noexcept nogil
cdef void wake(Table *table) noexcept nogil
cdef bint log_records(Runner runner, Table *table) noexcept
cdef void count_lifecycle_call(int change) noexcept nogil
cdef bint is_any_in_lifecycle_call() noexcept nogil
cdef int raise_pending_exit() except -1
cdef void know_library(void *address, str plugin) except *
cdef void forget_library(void *base) noexcept
