# The contexts of native plugins, their timers, and the functions of a plugin's life.

from ._handles cimport Slot, Table

cdef object new_life(str name, void *address)
cdef object new_hook(void *address, int kind)
cdef void stop_timer(Table *table, Slot *timer) noexcept nogil
