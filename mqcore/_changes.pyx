"""The plugins of one dispatcher, and how changes of them reach it between steps.

A change is made ready beside what there is: a context for each plugin that is new, and a chain for each hook whose plugins
are others. Then it is committed, which nothing can refuse any more. A change that another thread made is made ready in ticks,
in portions. Contexts of plugins that are gone are cleaned up in a tick, outside of any change, as soon as no step can reach
them.
"""

import logging

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from ._chain cimport Chain, Route, new_chain
from ._context cimport Context, new_context, new_replaced_contexts
from ._holds cimport HoldTable
from ._message cimport HOLD_TIMES, CounterRow, Counters, report_raised
from .loop._call cimport ends_program, take_error
from .loop._reactor cimport Portion, PyThread_get_thread_ident, Task, has_budget, has_time, start_portion
from .loop._seal cimport seal
from ._trace cimport chain_of as traced_chain_of

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
        self.replaced = new_replaced_contexts()
        self.rows = {}

    cdef object prepare(self, object plugins):
        """Make ready for another list of plugins: an object with `commit` and `discard`. From another thread, and while a list
        is taken over, nothing can be made ready: there `commit` leaves the change to later ticks."""
        cdef Change change
        if self.reactor.thread != PyThread_get_thread_ident() or self.taking_over:
            return self.later
        if self.later.change is not None:  # one after the other
            self.later.run(NULL)
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
        while not self.closed and self.replaced.has_unused():
            if not has_budget(&portion):
                return True
            clean_up_replaced(self.replaced.take_unused())
        return False

    cdef void close(self) noexcept:
        """Clean up every context, the last first. More than once is fine."""
        self.closed = True
        if self.later.change is not None and not self.taking_over:
            self.later.abandon()
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
                stats.append(stats_of(self.holds, <CounterRow>row))
        return tuple(stats)


cdef ActivePlugins new_active_plugins(HoldTable holds):
    cdef ActivePlugins active = ActivePlugins.__new__(ActivePlugins)
    active.holds = holds
    active.reactor = holds.reactor
    active.later = LaterChange.__new__(LaterChange)
    active.later.active = active
    return active


cdef bint sweep_phase(void *owner) noexcept:
    return (<ActivePlugins>owner).sweep()


cdef int clean_up_all(ActivePlugins active) except -1:
    cdef PyObject *taken = active.replaced.take_last()
    while taken != NULL:
        clean_up_replaced(taken)
        taken = active.replaced.take_last()
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


cdef object stats_of(HoldTable holds, CounterRow row):
    cdef Counters of
    read_numbers(<uint64_t *>&of, <uint64_t *>&row.counters, sizeof(Counters) // sizeof(uint64_t))
    of.caller.calls += holds.calls_in_batches(&row.counters)
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

    cdef int prepare(self) except -1:
        """Make all ready. What raises leaves nothing behind."""
        while self.prepare_next():
            pass
        return 0

    cdef bint prepare_next(self) except -1:
        """Make the next context or chain. False: all is ready. What raises leaves nothing behind."""
        try:
            self.is_ready = not self.make_next()
            if self.active.closed:
                raise DispatcherClosed("a plugin closed the dispatcher while its plugins were being changed")
        except BaseException:
            self.undo()
            raise
        return not self.is_ready

    cdef bint make_next(self) except -1:
        cdef Route route
        for plugin in self.new_plugins:
            self.contexts[plugin] = self.start(plugin)
            return True
        for route in self.routes:
            self.chains[route.name] = chain = self.chain_of(route)
            for trace in route.traces or ():
                self.traced[trace] = traced_chain_of(trace, chain)
            return True
        return False

    cdef Chain chain_of(self, Route route):
        """Of a hook: the one that it has, where that is of the same plugins."""
        cdef list found = []
        for plugin in self.plugins.of_hook.get(route.name, ()):
            found.append(self.contexts[plugin])
        contexts = tuple(found)
        if route.chain is not None and route.chain.contexts == contexts:
            return route.chain
        return new_chain(route, contexts)

    cdef Context start(self, plugin):
        cdef Context context = new_context(
            self.active.holds, self.active.rows, self.active.replaced, plugin, self.active.hold_timeout)
        if plugin._coroutine_hooks and self.active.reactor.library.owner != "uvloop":
            raise PluginError(f"{min(plugin._coroutine_hooks)} is a coroutine function, which needs a uvloop loop; this one is "
                              f"pyuv's", plugin=plugin.name, path=plugin.path)
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
            self.undo()
            return
        self.is_ready = False
        for context in gone:
            active.replaced.add(context)
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
        """It is not wanted."""
        self.undo()

    cdef int undo(self) except -1:
        """Clean up what was made ready."""
        self.is_ready = False
        self.traced.clear()
        self.chains.clear()
        while self.fresh:
            clean_up(<Context>self.fresh.pop())
        return 0


cdef Change new_change(ActivePlugins active, object plugins):
    cdef Change change = Change.__new__(Change)
    change.active = active
    change.plugins = plugins
    change.contexts = {}
    change.fresh = []
    change.chains = {}
    change.traced = {}
    new_plugins = []
    for plugin in plugins:
        change.contexts[plugin] = active.contexts.get(plugin)
        if change.contexts[plugin] is None:
            new_plugins.append(plugin)
    change.new_plugins = iter(new_plugins)
    change.routes = iter(list(active.hooks.values()))
    return change


@cython.final
cdef class LaterChange(Task):

    def commit(self):
        """Take over the plugins as they are then, in later ticks."""
        if not self.active.closed and not self.active.reactor.forked:
            self.due = True
            self.active.reactor.post(self)

    def discard(self):
        """Nothing was made ready."""

    cdef void run_posted(self) noexcept:
        cdef Portion portion = start_portion(self.active.reactor.state.uv)
        has_time(&portion)  # its time begins here, and not with the first entry
        self.run(&portion)

    cdef void run(self, Portion *portion) noexcept:
        """Go on for a while, or with NULL to the end."""
        cdef ActivePlugins active = self.active
        if not active.taking_over:  # else this is called by a plugin that is just being started
            active.taking_over = True
            if (<int (*)(LaterChange, Portion *) noexcept>take_over_some)(self, portion) < 0:
                report_raised(active.reactor, "a change of plugins, which left this dispatcher as it was")
            active.taking_over = False
        if active.closed:
            self.abandon()
        elif self.due or self.change is not None:
            active.reactor.post(self)

    cdef void abandon(self) noexcept:
        """The dispatcher is closed."""
        if (<int (*)(LaterChange) noexcept>undo_change)(self) < 0:
            report_raised(self.active.reactor, "a change of plugins that the end of the dispatcher has cut short")


cdef int take_over_some(LaterChange later, Portion *portion) except -1:
    """Waits for no change: where another one is under way, it announces itself."""
    try:
        if later.change is None:
            later.due = False
            later.current = later.active.plugins._current()
            plugins = later.current.__enter__()
            if plugins is None or later.active.closed:
                return leave(later)
            later.change = new_change(later.active, plugins)
        while portion == NULL or has_time(portion):  # each entry may take long, so the clock is read before each
            if not later.change.prepare_next():
                later.change.commit()
                return leave(later)
    except BaseException:
        leave(later)
        raise
    return 0


cdef int undo_change(LaterChange later) except -1:
    if later.change is not None:
        later.change.undo()
    return leave(later)


cdef int leave(LaterChange later) except -1:
    """The change is over, or there is none: its plugins may end."""
    current, later.current = later.current, None
    later.change = None
    if current is not None:
        current.__exit__(None, None, None)
    return 0


# ----------------------------------------------------------------------------------------------------------- End of life

cdef void clean_up_replaced(PyObject *taken) noexcept:
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
