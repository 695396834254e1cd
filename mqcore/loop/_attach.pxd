# A reactor's beginning and its end.

from ._reactor cimport Reactor

cdef int attach(Reactor reactor, object loop, object dispatcher) except -1
cdef void stop_all(Reactor reactor) noexcept
cdef void close(Reactor reactor) noexcept
