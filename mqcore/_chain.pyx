"""Chains: the plugins that implement a hook, in order, as flat arrays that steps go along.

Immutable: a change of plugins makes new ones. A message that is held keeps the chain that its step began with.
"""

import inspect

cimport cython
from cpython.object cimport PyObject
from libc.stdlib cimport calloc, free

from ._context cimport Context
from ._message cimport Control, Entry, Tally


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the contexts
cdef class Chain:

    def __dealloc__(self):
        cdef Context context
        for each in self.contexts or ():
            context = each
            context.uses -= 1
            if context.retired and context.uses == 0 and context.owner is not None:
                (<Control>context.owner).sweep_due = True
                context.reactor.wake()
        free(self.entries)


cdef class Route:
    pass


cdef class NativeFunction:

    def __call__(self, context, message, *args):
        raise TypeError("a native plugin's hook is called by a dispatcher alone")


cdef Chain new_chain(Control control, Route route, list contexts):
    """The chain of a hook over these contexts, which are in order."""
    cdef str hook = route.name
    cdef Chain chain = Chain.__new__(Chain)
    cdef Context context
    cdef Tally tally
    cdef Entry *entry
    chain.route = route
    chain.entries = <Entry *>calloc(len(contexts) + 1, sizeof(Entry))
    if chain.entries == NULL:
        raise MemoryError()
    chain.functions = tuple([(<Context>each).plugin.hooks[hook] for each in contexts])
    chain.contexts = tuple(contexts)
    entry = chain.entries
    for function, each in zip(chain.functions, chain.contexts):
        context = each
        context.uses += 1
        if isinstance(function, NativeFunction) and context.handle != NULL:
            entry.native = (<NativeFunction>function).address
            entry.kind = (<NativeFunction>function).kind
            entry.handle = context.handle
        else:
            entry.function = <PyObject *>function
        entry.context = <PyObject *>context
        entry.plugin = <PyObject *>context.name
        tally = context.tally_of(hook)
        entry.counters = &tally.counters
        entry.lane = control.lane_of(context.hold_timeout)
        entry.hook = <PyObject *>hook
        chain.native = entry.native != NULL and (chain.native or entry == chain.entries)
        entry += 1
        chain.coroutines |= inspect.iscoroutinefunction(function)
    entry.hook = <PyObject *>hook
    return chain
