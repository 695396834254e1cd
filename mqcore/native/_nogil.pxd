# The part of a tick that needs no GIL: native plugins' timers and watchers, and messages that they gave back.

from .._dispatch cimport Runner
from ._slots cimport Slot, Table

cdef bint nogil_phase(void *owner) noexcept nogil
cdef bint gil_phase(void *owner) noexcept
cdef void resume_given(Runner runner, Table *table) noexcept nogil
cdef void stop(Table *table, Slot *slot) noexcept nogil
