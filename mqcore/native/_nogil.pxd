# The part of a tick that needs no GIL: native plugins' timers and watchers, and messages that they gave back.

from ._slots cimport Slot, Table

cdef bint nogil_phase(void *owner) noexcept nogil
cdef void absorb(object runner) noexcept
cdef void join_context(Slot *context, Slot *slot) noexcept nogil
cdef void stop(Table *table, Slot *slot) noexcept nogil
