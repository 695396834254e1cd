# The part of a turn that needs no GIL: native plugins' timers, and messages that they gave back.

from ._handles cimport Slot, Table
from ._loop cimport Loop
from ._message cimport Control

cdef bint bare_turn(Loop loop) noexcept nogil
cdef void absorb(Control control) noexcept
cdef void stop_timer(Table *table, Slot *timer) noexcept nogil
