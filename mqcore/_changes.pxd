# The plugins of one dispatcher, and how changes of them reach it between steps.

from ._chain cimport Route
from ._context cimport Context, Retired
from ._holds cimport HoldTable
from .loop._reactor cimport Reactor

cdef class ActivePlugins:
    """The plugins that a dispatcher runs messages through: a part of the dispatcher."""
    cdef HoldTable holds
    cdef Reactor reactor
    cdef object plugins             # Plugins
    cdef dict hooks                 # name -> Hook
    cdef dict contexts              # Plugin -> Context, in order
    cdef Retired retired
    cdef dict rows                  # (plugin, hook) -> CounterRow
    cdef double hold_timeout        # s
    cdef bint taking_over           # a list that is the set's already
    cdef bint closed

    cdef object prepare(self, object plugins)
    cdef int take_over(self, object plugins) except -1
    cdef bint sweep(self) noexcept
    cdef void close(self) noexcept
    cdef tuple stats(self)

cdef ActivePlugins new_active_plugins(HoldTable holds)
cdef bint sweep_phase(void *owner) noexcept
