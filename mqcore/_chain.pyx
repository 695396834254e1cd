"""Chains: the plugins that implement a hook, in order, as flat arrays that steps go along.

Immutable: a change of plugins makes new ones. A message that is held keeps the chain that its step began with.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdlib cimport calloc, free

from ._context cimport Context
from ._holds cimport HoldTable
from ._message cimport CounterRow, Entry
from .loop._seal cimport seal, seal_base

cdef dict hook_names = {}  # name -> name, never freed: entries and messages refer to them without counting


@cython.final
@cython.no_gc_clear  # steps go along it, and __dealloc__ needs the contexts
cdef class Chain:

    def __dealloc__(self):
        cdef Entry *entry = self.entries
        if entry != NULL and self.contexts is not None:  # else it was never complete
            while entry.context != NULL:
                (<Context>entry.context).replaced.stop_using(<Context>entry.context)
                entry += 1
        free(self.entries)


@cython.no_gc_clear
cdef class Route:
    pass


@cython.final
@cython.no_gc  # a library refers to nothing
cdef class NativeFunction:

    def __call__(self, context, message, *args):
        raise TypeError("a native plugin's hook is called by a dispatcher alone")


cdef NativeFunction new_native_function(void *address, int kind, object library):
    cdef NativeFunction function = NativeFunction.__new__(NativeFunction)
    function.library = library
    function.address = address
    function.kind = kind
    return function


cdef int open_route(Route route, str name, HoldTable holds) except -1:
    route.name = hook_names.setdefault(name, name)
    route.holds = holds
    route.waiting.hook = <PyObject *>route.name
    route.waiting.lists = &holds.lists
    return 0


cdef Chain new_chain(Route route, tuple contexts):
    """The chain of a hook over these contexts, which are in order. All of it is memory for each plugin, hook and dispatcher, so
    what can be known of a plugin and hook before stands in the plugin."""
    cdef Chain chain = Chain.__new__(Chain)
    cdef Context context
    cdef CounterRow row
    cdef Entry *entry
    chain.route = route
    cdef list functions = []
    cdef list rows = []
    for each in contexts:  # no comprehensions: what Cython makes of them drops twice what there is no memory for
        function = (<Context>each).plugin.hooks[route.name]
        functions.append(function)
        rows.append((<Context>each).row_of(route.name))
        chain.coroutines |= route.name in (<Context>each).plugin._coroutine_hooks
    chain.functions = tuple(functions)
    chain.entries = <Entry *>calloc(len(contexts) + 1, sizeof(Entry))
    if chain.entries == NULL:
        raise MemoryError()
    entry = chain.entries
    for function, each, row in zip(chain.functions, contexts, rows):
        context = each
        if isinstance(function, NativeFunction) and context.handle != NULL:
            entry.native = (<NativeFunction>function).address
            entry.kind = (<NativeFunction>function).kind
            entry.handle = context.handle
        else:
            entry.function = <PyObject *>function
        entry.context = <PyObject *>context
        entry.plugin = <PyObject *>context.name
        entry.row = <PyObject *>row
        entry.counters = &row.counters
        entry.bucket = route.holds.bucket_of(context.hold_timeout)
        entry.hook = <PyObject *>route.name
        entry.lists = &route.holds.lists
        chain.native = entry.native != NULL and (chain.native or entry == chain.entries)
        entry += 1
    entry.hook = <PyObject *>route.name
    entry.lists = &route.holds.lists
    use(chain, contexts)
    return chain


cdef Chain new_chain_with(Route route, Chain chain, list probes):
    """The same plugins, on another route. For each there is a probe, to be called in the place of its Python function, or
    before its C function."""
    cdef Chain made = Chain.__new__(Chain)
    cdef Py_ssize_t count = len(chain.contexts)
    cdef Py_ssize_t place
    cdef list functions = []
    cdef list contexts = []
    cdef Entry *entry
    for place in range(count):
        functions.append(probes[place])
        contexts.append(chain.contexts[place])
        if chain.entries[place].native != NULL:
            functions.append(chain.functions[place])
            contexts.append(chain.contexts[place])
    cdef tuple uses = tuple(contexts)
    made.route = route
    made.coroutines = chain.coroutines
    made.functions = tuple(functions)
    made.entries = <Entry *>calloc(len(uses) + 1, sizeof(Entry))
    if made.entries == NULL:
        raise MemoryError()
    entry = made.entries
    for place in range(count):
        entry[0] = chain.entries[place]
        entry.function = <PyObject *>probes[place]
        if entry.native != NULL:
            entry.native = NULL
            entry[1] = chain.entries[place]
            entry += 1
        entry += 1
    entry[0] = chain.entries[count]
    use(made, uses)
    return made


cdef int use(Chain chain, tuple contexts) except -1:
    """The last thing for a new chain: what raised before has counted no uses."""
    chain.contexts = contexts
    for each in contexts:
        (<Context>each).uses += 1
    return 0


seal(Chain)
seal(NativeFunction)
seal_base(Route)
