# Chains: the plugins that implement a hook, in order.

from ._holds cimport HoldTable
from ._message cimport Entry

cdef class NativeFunction:
    """The C function of a native plugin, for a hook."""
    cdef void *address
    cdef int kind                   # how it is called: for native/ to know
    cdef object library             # keeps the code in memory

cdef class Route:
    """The base of Hook: where the chain of a hook is found as it is now."""
    cdef readonly str name          # interned, never freed
    cdef Chain chain                # None until the dispatcher's first plugins are there
    cdef HoldTable holds
    cdef Entry waiting              # where messages are that run_many() has taken and not come to yet: at no plugin
    cdef list traces                # the routes of its traced steps, which have chains of their own; None: there never were any

cdef class Chain:
    """The plugins that implement one hook, in order. Immutable: a change makes a new one."""
    cdef Entry *entries             # one for each plugin, and a last one without a function
    cdef tuple functions            # keep what the entries point to
    cdef tuple contexts
    cdef bint coroutines            # some hook is a coroutine function
    cdef bint native                # all hooks are C functions of native plugins, and there are some
    cdef Route route

cdef Chain new_chain(Route route, tuple contexts)
cdef Chain new_chain_with(Route route, Chain chain, list probes)
cdef NativeFunction new_native_function(void *address, int kind, object library)
cdef int open_route(Route route, str name, HoldTable holds) except -1
