# Chains: the plugins that implement a hook, in order.

from ._message cimport Control, Entry

cdef class NativeFunction:
    """The C function of a native plugin, for a hook."""
    cdef void *address
    cdef int kind                   # how it is called: for _native to know

cdef class Route:
    """The base of Hook: where the chain of a hook is found as it is now."""
    cdef readonly str name          # kept for ever
    cdef Chain chain

cdef class Chain:
    """The plugins that implement one hook, in order. Immutable: a change makes a new one."""
    cdef Entry *entries             # one for each plugin, and a last one without a function
    cdef tuple functions            # keep what the entries point to
    cdef tuple contexts
    cdef bint coroutines            # some hook is a coroutine function
    cdef bint native                # all hooks are C functions of native plugins, and there are some
    cdef Route route

cdef Chain new_chain(Control control, Route route, list contexts)
