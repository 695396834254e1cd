"""The plugins of one dispatcher, and how changes of them reach it between steps.

A change is made ready beside what there is: a context for each plugin that is new, and a chain for each hook. Then it is
committed, which nothing can refuse any more. Contexts of plugins that are gone are cleaned up in a tick, outside of any change,
as soon as no step can reach them.
"""

import inspect
import logging

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route, new_chain
from ._context cimport Context, new_context, new_retired
from ._holds cimport HoldTable
from ._message cimport HOLD_TIMES, CounterRow, Counters, report_raised
from .loop._call cimport ends_program, take_error
from .loop._reactor cimport Portion, PyThread_get_thread_ident, Task, goes_on, start_portion
from ._trace cimport chain_of
from .loop._seal cimport seal

from .errors import DispatcherClosed, PluginError
from .stats import HookStats

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>

    /* Numbers that another thread may be counting up, which takes no lock: each is whole, and may be a few behind. */
    #ifdef __SANITIZE_THREAD__
    __attribute__((noinline, no_sanitize_thread))
    #endif
    static void mqcore_read_numbers(uint64_t *to, const volatile uint64_t *from, size_t count)
    {
        for (size_t each = 0; each < count; each++)
            to[each] = from[each];
    }
    """
    void read_numbers "mqcore_read_numbers"(uint64_t *, uint64_t *, size_t) noexcept

cdef tuple NO_HOLDS = (0,) * HOLD_TIMES


@cython.final
@cython.no_gc_clear
cdef class ActivePlugins:

    def __cinit__(self):
        self.hooks = {}
        self.contexts = {}
        self.retired = new_retired()
        self.rows = {}

    cdef object prepare(self, object plugins):
        """Make ready for another list of plugins: an object with `commit` and `discard`. From another thread, and while a list
        is taken over, nothing can be made ready: there `commit` leaves the change to a later tick."""
        cdef Change change
        if self.reactor.thread != PyThread_get_thread_ident() or self.taking_over:
            return new_later_change(self)
        change = new_change(self, plugins)
        change.prepare()
        return change

    cdef int take_over(self, object plugins) except -1:
        """Change to these plugins, which are the set's by now."""
        cdef Change change
        self.taking_over = True
        try:
            change = new_change(self, plugins)
            change.prepare()
            change.commit()
        finally:
            self.taking_over = False
        return 0

    cdef bint sweep(self) noexcept:
        """Clean up the contexts of replaced plugins that no step can reach any more, for a while. Whether there are more."""
        cdef Portion portion = start_portion(self.reactor.state.uv)
        while not self.closed and self.retired.has_unused():
            if not goes_on(&portion):
                return True
            clean_up_retired(self.retired.take_unused())
        return False

    cdef void close(self) noexcept:
        """Clean up every context, the last first. More than once is fine."""
        self.closed = True
        if (<int (*)(ActivePlugins) noexcept>clean_up_all)(self) < 0:
            report_raised(self.reactor, "the end of a dispatcher's plugins")

    cdef tuple stats(self):
        """A HookStats for each plugin and hook: hook by hook, the plugins of now first, in order."""
        cdef list rows = list(self.rows.values())
        cdef list stats = []
        cdef dict order = {}
        cdef dict hooks = {"": len(self.hooks)}
        for context in self.contexts.values():
            order[(<Context>context).name] = len(order)
        for name in self.hooks:
            hooks[name] = len(hooks) - 1
        rows.sort(key=lambda row: (hooks.get((<CounterRow>row).hook, 0), order.get((<CounterRow>row).plugin, len(order))))
        for row in rows:
            if (<CounterRow>row).hook is not None:
                stats.append(stats_of(<CounterRow>row))
        return tuple(stats)


cdef ActivePlugins new_active_plugins(HoldTable holds):
    cdef ActivePlugins active = ActivePlugins.__new__(ActivePlugins)
    active.holds = holds
    active.reactor = holds.reactor
    return active


cdef bint sweep_phase(void *owner) noexcept:
    return (<ActivePlugins>owner).sweep()


cdef int clean_up_all(ActivePlugins active) except -1:
    cdef PyObject *taken = active.retired.take_last()
    while taken != NULL:
        clean_up_retired(taken)
        taken = active.retired.take_last()
    while active.contexts:
        clean_up(<Context>active.contexts.popitem()[1])
    for route in active.hooks.values():  # a chain and its hook refer to each other
        drop_chain(<Route>route)
    return 0


cdef void drop_chain(Route route) noexcept:
    cdef PyObject *chain = <PyObject *>route.chain  # dropped when the field is set
    Py_INCREF(<object>chain)
    route.chain = None
    Py_DECREF(<object>chain)


cdef int take_over_current(ActivePlugins active) except -1:
    """Change to the plugins as they are by now. Waits for no change: where another one is under way, it announces itself."""
    with active.plugins._current() as plugins:
        if plugins is not None and not active.closed:
            active.take_over(plugins)
    return 0


cdef object stats_of(CounterRow row):
    cdef Counters of
    read_numbers(<uint64_t *>&of, <uint64_t *>&row.counters, sizeof(Counters) // sizeof(uint64_t))
    seconds = of.sampled_ns / 1e9 * of.caller.calls / of.samples if of.samples else 0.0
    return tuple.__new__(HookStats, (
        row.plugin, row.hook, of.caller.calls, of.holds, of.continues, of.completes, of.retries, of.failures, of.timeouts,
        of.abandoned, of.refused, seconds, of.longest_ns / 1e9, of.held_ns / 1e9, of.held, hold_times_of(&of),
        of.retry_limits))


cdef tuple hold_times_of(Counters *counters):
    cdef list times = []
    cdef int index
    if not counters.holds:
        return NO_HOLDS  # as of most
    for index in range(HOLD_TIMES):
        times.append(counters.hold_times[index])
    return tuple(times)


# --------------------------------------------------------------------------------------------------------------- Changes

@cython.final
cdef class Change:
    """A change of a dispatcher's plugins, made ready on its thread."""
    cdef ActivePlugins active
    cdef object plugins             # a Snapshot
    cdef dict contexts
    cdef list fresh
    cdef dict chains
    cdef dict traced                # Trace of a step that is open -> Chain
    cdef bint is_ready              # it may be committed

    cdef int prepare(self) except -1:
        """Make the contexts that are new, and all chains. What raises leaves nothing behind."""
        cdef Route route
        try:
            for plugin in self.plugins:
                context = self.active.contexts.get(plugin)
                if context is None:
                    context = self.start(plugin)
                self.contexts[plugin] = context
            for route in self.active.hooks.values():
                self.chains[route.name] = new_chain(route, self.contexts_with(route.name))
                for trace in route.traces or ():
                    self.traced[trace] = chain_of(trace, self.chains[route.name])
            if self.active.closed:
                raise DispatcherClosed("a plugin closed the dispatcher while its plugins were being changed")
            self.is_ready = True
        except BaseException:
            self.discard()
            raise
        return 0

    cdef list contexts_with(self, str hook):
        """The contexts of plugins that implement the hook and are not paused, in order."""
        cdef list found = []
        cdef object paused = self.plugins.paused
        for plugin, context in self.contexts.items():
            if hook in plugin.hooks and plugin.name not in paused:
                found.append(context)
        return found

    cdef Context start(self, plugin):
        cdef Context context = new_context(
            self.active.holds, self.active.rows, self.active.retired, plugin, self.active.hold_timeout)
        if self.active.reactor.library.owner != "uvloop":
            for name in plugin.hooks:  # CPython's items() of such a mapping crashes where there is no memory
                if inspect.iscoroutinefunction(plugin.hooks[name]):
                    raise PluginError(f"{name} is a coroutine function, which needs a uvloop loop; this one is pyuv's",
                                      plugin=plugin.name, path=plugin.path)
        plugin._acquire()
        if plugin.context_initialize is not None:
            try:
                plugin._call("mq_context_initialize", context)
            except BaseException:
                context.detach()
                plugin._release()
                raise
        self.fresh.append(context)
        return context

    def commit(self):
        """Swap it in. Nothing of the old is dropped before all of the new is there."""
        cdef ActivePlugins active = self.active
        cdef Context context
        cdef Route route
        cdef Chain chain
        cdef list old = [active.contexts]
        cdef list gone = []
        for route in active.hooks.values():
            old.append(route.chain)
            for trace in route.traces or ():
                old.append((<Route>trace).chain)
        for plugin, each in active.contexts.items():
            if plugin not in self.contexts:
                gone.append(each)
        if active.closed or not self.is_ready:
            self.discard()
            return
        self.is_ready = False
        for context in gone:
            active.retired.add(context)
        active.contexts = self.contexts
        for route in active.hooks.values():
            chain = self.chains[route.name]
            route.chain = chain
            for trace in route.traces or ():  # those that began meanwhile are not traced beyond a retry
                (<Route>trace).chain = self.traced.get(trace, chain)
        self.fresh = []
        self.chains = {}
        self.traced = {}
        self.contexts = {}
        active.holds.lists.fast_path_off = True
        active.reactor.wake()  # for the sweep

    def discard(self):
        """It is not wanted: clean up what was made ready."""
        self.traced.clear()
        self.chains.clear()
        while self.fresh:
            clean_up(<Context>self.fresh.pop())


cdef Change new_change(ActivePlugins active, object plugins):
    cdef Change change = Change.__new__(Change)
    change.active = active
    change.plugins = plugins
    change.contexts = {}
    change.fresh = []
    change.chains = {}
    change.traced = {}
    return change


@cython.final
cdef class LaterChange(Task):
    """A change of plugins that a later tick takes over: it was made on another thread, or while the dispatcher was made."""
    cdef ActivePlugins active

    def commit(self):
        if not self.active.closed and not self.active.reactor.forked:
            self.active.reactor.post(self)

    def discard(self):
        """Nothing was made ready."""

    cdef void run_posted(self) noexcept:
        if (<int (*)(ActivePlugins) noexcept>take_over_current)(self.active) < 0:
            report_raised(self.active.reactor, "a change of plugins, which left this dispatcher as it was")


cdef LaterChange new_later_change(ActivePlugins active):
    cdef LaterChange change = LaterChange.__new__(LaterChange)
    change.active = active
    return change


# ----------------------------------------------------------------------------------------------------------- End of life

cdef void clean_up_retired(PyObject *taken) noexcept:
    """The end of a context that is not in use any more. Steals the reference."""
    clean_up(<Context>taken)
    Py_DECREF(<Context>taken)


cdef void clean_up(Context context) noexcept:
    """Rule 17: the end of a context."""
    if (<int (*)(Context) noexcept>call_cleanup)(context) < 0:
        cleanup_raised(context)
    context.detach()
    if (<int (*)(Context) noexcept>release_plugin)(context) < 0:
        report_raised(context.reactor, "the end of a plugin")


cdef void cleanup_raised(Context context) noexcept:
    cdef PyObject *error = take_error()
    if ends_program(<object>error):
        context.reactor.raise_through_loop(<object>error)
    if (<int (*)(Context, object) noexcept>log_cleanup)(context, <object>error) < 0:
        report_raised(context.reactor, "the cleanup of a plugin")
    Py_DECREF(<object>error)


cdef int log_cleanup(Context context, object error) except -1:
    context.reactor.log(context.log, logging.ERROR, "plugin %s: mq_context_cleanup raised", (context.name,), error)
    return 0


cdef int call_cleanup(Context context) except -1:
    if context.plugin.context_cleanup is not None:
        context.plugin.context_cleanup(context)
    return 0


cdef int release_plugin(Context context) except -1:
    context.plugin._release()
    return 0


seal(ActivePlugins)
seal(Change)
seal(LaterChange)
