# What native plugins have to say, and what has to be said of them: to be logged by the dispatcher.

from ._slots cimport Slot, Table

cdef void refuse(void *handle, const char *what, void *caller) noexcept nogil
cdef void refuse_late(Table *table, Slot *slot) noexcept nogil
cdef void write_log(int priority, const char *text, void *caller) noexcept nogil
cdef void wake(Table *table) noexcept nogil
cdef void log_notes(Table *table) noexcept
cdef void set_living(int change) noexcept nogil
cdef void know_library(void *address, str plugin)
