# The plugins of one dispatcher, and how changes of them reach it between steps.

from ._chain cimport Chain, Route
from ._context cimport Context, ReplacedContexts
from ._holds cimport HoldTable
from .loop._reactor cimport Portion, Reactor, Task

cdef class Change:
    """A change of a dispatcher's plugins, made ready on its thread."""
    cdef ActivePlugins active
    cdef object plugins             # a snapshot
    cdef object new_plugins         # iterators, of what is still to be made ready: first a context for each of these
    cdef object routes              # then a chain for each
    cdef dict contexts
    cdef list fresh
    cdef dict chains
    cdef dict traced                # Trace of a step that is open -> Chain
    cdef bint is_ready              # it may be committed

    cdef int prepare(self) except -1
    cdef bint prepare_next(self) except -1
    cdef bint make_next(self) except -1
    cdef int undo(self) except -1
    cdef Chain chain_of(self, Route route)
    cdef Context start(self, plugin)

cdef class LaterChange(Task):
    """The change of plugins that ticks take over, in portions: of those that other threads made, or that were made while
    plugins were taken over, all that there were by its beginning."""
    cdef ActivePlugins active
    cdef Change change              # the one that is being made ready; None: none is
    cdef object current             # the context manager by which its plugins do not end meanwhile
    cdef bint due                   # another one is to follow

    cdef void run(self, Portion *portion) noexcept
    cdef void abandon(self) noexcept

cdef class ActivePlugins:
    """The plugins that a dispatcher runs messages through: a part of the dispatcher."""
    cdef HoldTable holds
    cdef Reactor reactor
    cdef object plugins             # Plugins
    cdef dict hooks                 # name -> Hook
    cdef dict contexts              # Plugin -> Context, in order
    cdef ReplacedContexts replaced
    cdef dict rows                  # (plugin, hook) -> CounterRow
    cdef double hold_timeout        # s
    cdef LaterChange later
    cdef bint taking_over           # a list that is the set's already
    cdef bint closed

    cdef object prepare(self, object plugins)
    cdef int take_over(self, object plugins) except -1
    cdef bint sweep(self) noexcept
    cdef void close(self) noexcept
    cdef tuple stats(self)

cdef ActivePlugins new_active_plugins(HoldTable holds)
cdef bint sweep_phase(void *owner) noexcept
