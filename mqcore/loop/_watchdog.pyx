"""The watchdog of a loop, as Python has it: it starts and stops its thread, notes the loop's iterations for it by two handles
of libuv's, and has the figures. What needs the GIL to be reported is reported by a Python thread: see _reporter.
"""

import atexit
import faulthandler
import json
import os
import threading

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from posix.unistd cimport read

from ._atomic cimport add_number, get, load, load_flag, store, store_flag
from ._dl cimport RTLD_DEFAULT, dlsym
from ._libuv cimport UV_CHECK, UV_PREPARE, uv_handle_t
from ._reactor cimport Reactor
from ._seal cimport seal
from ._state cimport NS_PER_MS, Caller, LoopState, close_handle, header_of, new_handle, opened, set_calling, uv_of
from ._watchdog_thread cimport (
    LAG_BUCKETS, LEVELS, Report, WatchdogState, add_caller, close_files, close_one, dump_function, init_state, iteration_began,
    iteration_ended, lag_bound, note_thread, start_thread, stop_thread)

from ..stats import Blocked, Lag
from ._reporter import report_all

cdef extern from "pthread.h" nogil:
    int pthread_mutex_lock(void *)
    int pthread_mutex_unlock(void *)

cdef extern from "Python.h":
    int PySet_Discard(set, object) noexcept  # of what is hashed by its address: cannot fail

cdef tuple REPORTED_AFTER = (1, 10, 60)  # s, once more, if that is longer than the limit

cdef set live = set()  # those whose threads run


# In the child of a fork the handles cannot be closed: a loop that runs there finds no watchdog any more.

cdef void on_prepare(uv_handle_t *uv_handle) noexcept nogil:
    cdef LoopState *state = header_of(uv_handle).loop
    if state.watchdog != NULL:
        set_calling(state, NULL)
        iteration_ended(<WatchdogState *>state.watchdog, state.uv.hrtime())


cdef void on_check(uv_handle_t *uv_handle) noexcept nogil:
    cdef LoopState *state = header_of(uv_handle).loop
    if state.watchdog != NULL:
        iteration_began(<WatchdogState *>state.watchdog, state.uv.now(state.pointer) * NS_PER_MS)


@cython.final
@cython.no_gc_clear
cdef class LoopWatchdog:

    def __cinit__(self):
        init_state(&self.state)

    cdef int start(self, object order) except -1:
        """`order`: a Watchdog of mqcore.watchdog."""
        cdef WatchdogState *watchdog = &self.state
        cdef int level = 1
        cdef uint64_t ns
        watchdog.levels[0] = <uint64_t>(order.limit * 1e9)
        for seconds in REPORTED_AFTER:
            ns = seconds * 1_000_000_000
            if ns > watchdog.levels[0]:
                watchdog.levels[level] = ns
                level += 1
        while level < LEVELS:
            watchdog.levels[level] = <uint64_t>-1
            level += 1
        watchdog.abort_after = <uint64_t>(order.abort * 1e9)
        watchdog.as_json = order.json
        if order.abort and not faulthandler.is_enabled():
            faulthandler.enable(2)
        if order.unsafe_stack:
            watchdog.dump = find_dump()
        watchdog.state = &self.reactor.state
        watchdog.backend = self.reactor.state.uv.backend_fd(self.reactor.state.pointer)
        note_thread(watchdog)
        failed = start_thread(watchdog)
        if failed:
            self.stop_threads()
            raise OSError(failed, f"the watchdog cannot start its thread: {os.strerror(failed)}")
        try:
            reporter = threading.Thread(target=report_all, args=(self,), name="mqcore watchdog", daemon=True)
            reporter.start()
            self.reporter = reporter
            live.add(self)
            self.open_handles()
        except BaseException:
            self.stop_threads()
            raise
        return 0

    cdef int open_handles(self) except -1:
        self.prepare = new_handle(&self.reactor.state, UV_PREPARE)
        self.check = new_handle(&self.reactor.state, UV_CHECK)
        if self.prepare == NULL or self.check == NULL:
            free(self.prepare)
            free(self.check)
            self.prepare = self.check = NULL
            raise MemoryError()
        self.reactor.state.watchdog = &self.state
        uv = self.reactor.state.uv
        uv.prepare_init(self.reactor.state.pointer, uv_of(self.prepare))  # none of these can fail
        uv.check_init(self.reactor.state.pointer, uv_of(self.check))
        opened(&self.reactor.state)
        opened(&self.reactor.state)
        uv.prepare_start(uv_of(self.prepare), on_prepare)
        uv.check_start(uv_of(self.check), on_check)
        uv.unref(uv_of(self.prepare))
        uv.unref(uv_of(self.check))
        add_caller(&self.state, &self.state.unattributed)
        self.reload.hook = b"reload"
        add_caller(&self.state, &self.reload)
        return 0

    cdef void stop_threads(self) noexcept:
        """More than once is fine."""
        if self.reactor.forked:
            self.state.started = False  # it is the parent's
        with nogil:
            stop_thread(&self.state)
        close_files(&self.state)
        if self.reporter is None or self.reactor.forked:
            close_one(&self.state.requests[0])
        PySet_Discard(live, self)

    cdef void stop(self) noexcept:
        """The dispatcher closes: on its thread."""
        self.stop_threads()
        self.reactor.state.watchdog = NULL
        if self.prepare != NULL and not self.reactor.forked:
            close_handle(self.prepare)
            close_handle(self.check)
        self.prepare = self.check = NULL

    cdef object run_reload(self, object function):
        """Call it; meanwhile a reload has the loop."""
        cdef Caller *before = self.reactor.state.calling[0]
        self.reload.calls += 1
        set_calling(&self.reactor.state, &self.reload)
        try:
            return function()
        finally:
            set_calling(&self.reactor.state, before)

    cdef void report_as(self, bint as_json, bint warnings) noexcept:
        store_flag(&self.state.as_json, as_json)
        store_flag(&self.state.warns, warnings)

    # -------------------------------------------------------------------------------------------------- for the reporter

    @property
    def ident(self):
        """The loop's thread."""
        return self.state.ident

    @property
    def loop(self):
        return self.reactor.loop

    def wait(self):
        """Wait until there is something to be reported; False: never more."""
        cdef char drained[64]
        cdef ssize_t size
        with nogil:
            size = read(self.state.requests[0], drained, sizeof(drained))
            while size < 0 and errno == EINTR:  # a signal that this thread was chosen for
                size = read(self.state.requests[0], drained, sizeof(drained))
        if size <= 0:
            close_one(&self.state.requests[0])
        return size > 0

    def report(self):
        """What is to be reported: whether it still lasts, whether it is known whose it is, plugin and hook, seconds, and the
        number of the iteration. None when the dispatcher was closed meanwhile."""
        cdef WatchdogState *watchdog = &self.state
        if load_flag(&watchdog.stopping):
            return None
        cdef Report report
        pthread_mutex_lock(&watchdog.lock)
        report = watchdog.report
        pthread_mutex_unlock(&watchdog.lock)
        cdef bint same = load(&watchdog.iteration) == report.iteration
        if report.caller == NULL:
            return same, False, None, None, report.lasted / 1e9, report.iteration
        same = same and get(report.counter) == report.calls
        return same, True, name_of(report.caller.plugin), name_of(report.caller.hook), report.lasted / 1e9, report.iteration

    def acknowledge(self, uint64_t iteration, bint first):
        """Of a block that is no plugin's: the loop does run, so it is one. `first`: it was not reported of this iteration."""
        if first:
            add_number(&self.state.unattributed.blocked, 1)
        store(&self.state.running_iteration, iteration)

    def lag(self):
        """The figures."""
        cdef WatchdogState *watchdog = &self.state
        cdef Caller *caller = watchdog.callers
        cdef int bucket
        cdef list blocked = []
        cdef list lags = []
        while caller != NULL:
            if get(&caller.blocked):
                blocked.append(Blocked(name_of(caller.plugin), name_of(caller.hook), get(&caller.blocked)))
            caller = caller.next
        for bucket in range(LAG_BUCKETS):
            lags.append((lag_bound(bucket) / 1e9 or float("inf"), watchdog.lags[bucket]))
        blocked.reverse()
        return Lag(watchdog.iterations, watchdog.iterations_ns / 1e9, watchdog.longest_ns / 1e9, tuple(lags), tuple(blocked))


cdef object name_of(const char *text):
    """A name as it was before it became text of a line."""
    return None if text == NULL else json.loads(b'"' + text + b'"')


cdef dump_function find_dump() noexcept:
    """CPython's function that writes a stack; NULL where it exports none."""
    cdef void *found = dlsym(RTLD_DEFAULT, b"PyUnstable_DumpTraceback")
    if found == NULL:
        found = dlsym(RTLD_DEFAULT, b"_Py_DumpTraceback")
    return <dump_function>found


def can_dump():
    """Whether there is one."""
    return find_dump() != NULL


cdef LoopWatchdog new_watchdog(Reactor reactor):
    cdef LoopWatchdog watchdog = LoopWatchdog.__new__(LoopWatchdog)
    watchdog.reactor = reactor
    return watchdog


def stop_all_threads():
    """The interpreter exits: a thread that looks at what it has freed would crash."""
    for watchdog in tuple(live):
        (<LoopWatchdog>watchdog).stop_threads()


atexit.register(stop_all_threads)
seal(LoopWatchdog)
