# The part of a turn that needs no GIL: native plugins' timers and watchers, and messages that they gave back.

from ._slots cimport Slot, Table
from .._message cimport Control

cdef bint bare_turn(void *owner) noexcept nogil
cdef void absorb(Control control) noexcept
cdef void join_context(Slot *context, Slot *slot) noexcept nogil
cdef void stop(Table *table, Slot *slot) noexcept nogil
