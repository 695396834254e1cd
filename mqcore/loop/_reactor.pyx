"""The loop as a dispatcher sees it, and its ticks, in which all that is ready is called.

libuv calls back without the GIL. Its callbacks only note what is ready and start an idle handle; libuv runs idle handles
once an iteration, before it polls, and the one here runs a *tick*: it goes through a table of phases. The first, native
plugins, needs no GIL, which is only taken when another phase has something to do; then once, for all of them. Whoever hands
control back also only requests a tick, so nothing ever runs nested. Each phase runs for 1 ms at most and goes on in the next
tick, so that no plugin can starve the loop. One timer of libuv's, the alarm, serves all timers: they wait in a wheel.

Everything here belongs to the loop's thread, except `wake` and `post`, which any thread may call with the GIL.
"""

import asyncio

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport free

from ._atomic cimport load_flag, store_flag
from ._call cimport ends_program, take_error
from ._libuv cimport uv_handle_t
from ._list cimport append, first, init_list, is_empty, is_linked, unlink
from ._poll cimport poll_again, renew_some, tell_lost
from ._report cimport try_log, try_log_failure, try_raise_through_loop, try_report, type_name
from ._seal cimport seal_base
from ._state cimport NS_PER_MS
from ._watchdog_thread cimport note_thread
from ._wheel cimport DUE, DUE_NOGIL, Node, first_due, init_wheel, insert, next_tick, remove, turn_wheel

from ..errors import DispatcherClosed, MqError
from ._state import handles  # no-cython-lint

cdef extern from "Python.h":
    void PySys_WriteStderr(const char *, ...)

ctypedef int (*log_function)(object, int, str, tuple, object) noexcept
ctypedef int (*report_function)(object, Library, object, str) noexcept
ctypedef int (*failure_function)(object, str) noexcept
ctypedef int (*raise_function)(object, Library, object) noexcept

cdef enum:
    MOST_LOOKS = 8  # of one tick, at what is ready
    FEW_TO_STOP = 16  # timers and watchers, in one go outside of a tick


# ---------------------------------------------------------------------------------------------------------- libuv's side

cdef void on_alarm(uv_handle_t *uv_handle) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    if handle.loop.uv.hrtime() < handle.due:
        arm(handle, on_alarm)
    else:
        handle.due = 0
        handle.rung = True
        request_nogil_tick(handle.loop)


@cython.nonecheck(False)
cdef void on_idle(uv_handle_t *uv_handle) noexcept nogil:
    """A tick."""
    cdef LoopState *state = header_of(uv_handle).loop
    cdef bint more = False
    state.asked = False
    if not is_empty(&state.lost):
        more = tell_lost(state)
    if state.renewing != NULL:
        more |= renew_some(state)
    if state.alarm.rung:
        # What becomes due later rings again, but for what had to wait since too much was to move.
        state.alarm.rung = not turn_wheel(&(<Reactor>state.owner).wheel, state.uv.hrtime() // NS_PER_MS)
        more |= state.alarm.rung
        if (<Reactor>state.owner).wheel.due:
            store_flag(&state.gil_needed, True)
    if (<Reactor>state.owner).run_nogil != NULL:
        if (<Reactor>state.owner).thread == PyThread_get_thread_ident():
            more |= (<Reactor>state.owner).run_nogil((<Reactor>state.owner).nogil_owner)
        else:
            more = True  # in the next tick, as this one learns that another thread runs the loop
            store_flag(&state.gil_needed, True)
    if load_flag(&state.gil_needed):
        tick_with_gil(state)
    elif (<Reactor>state.owner).thread != 0:
        (<Reactor>state.owner).end_tick()
    if more and (<Reactor>state.owner).thread != 0:
        request_nogil_tick(state)


cdef void tick_with_gil(LoopState *state) noexcept with gil:
    cdef Reactor reactor = <Reactor>state.owner
    reactor.tick()


# --------------------------------------------------------------------------------------------------------------- Phases

cdef bint run_posted(void *owner) noexcept:
    cdef Reactor reactor = <Reactor>owner
    cdef Portion portion = start_portion(reactor.state.uv)
    cdef size_t count = reactor.posted_count  # what is posted meanwhile is for the next tick
    cdef PyObject *task
    while count > 0 and reactor.posted_count > 0 and has_budget(&portion) and reactor.thread != 0:
        count -= 1
        task = take_posted(reactor)
        (<Task>task).run_posted()
        Py_DECREF(<Task>task)
    return reactor.posted_count > 0


cdef PyObject *take_posted(Reactor reactor) noexcept:
    """The first in the list, with the list's reference."""
    cdef Link *posted = first(&reactor.posted)
    unlink(posted)
    reactor.posted_count -= 1
    return <PyObject *>(<char *>posted - <size_t>&(<Task><PyObject *>NULL).posted)


# A variable that refers to a timer or watcher ends with one of these two. In a loop's own variable it would be dropped when
# the next one was looked up already: by that anybody's code may run, and stop the next one.

cdef void run_one(PyObject *owner) noexcept:
    cdef Runnable each = <Runnable>owner
    each.run()


cdef void halt_one(PyObject *owner) noexcept:
    cdef Runnable each = <Runnable>owner
    each.halt()


cdef bint run_ready(void *owner) noexcept:
    cdef Reactor reactor = <Reactor>owner
    cdef Portion portion = start_portion(reactor.state.uv)
    cdef int looks = MOST_LOOKS if reactor.state.ready_count[False] > 0 else 0
    while looks > 0:
        call_ready(reactor, &portion)
        looks -= 1
        if looks == 0 or reactor.thread == 0 or reactor.state.ready_count[False] > 0 or not poll_again(&reactor.state):
            break
    return reactor.state.ready_count[False] > 0


cdef void call_ready(Reactor reactor, Portion *portion) noexcept:
    cdef size_t count = reactor.state.ready_count[False]  # what becomes ready meanwhile waits
    cdef Watch *watch
    while count > 0 and reactor.state.ready_count[False] > 0 and has_budget(portion) and reactor.thread != 0:
        count -= 1
        watch = first_ready(&reactor.state, False)
        unlink_ready(&reactor.state, watch)
        run_one(watch.owner)


cdef bint run_due(void *owner) noexcept:
    cdef Reactor reactor = <Reactor>owner
    cdef Portion portion = start_portion(reactor.state.uv)
    cdef size_t count = reactor.wheel.due  # what becomes due meanwhile is for the next tick
    while count > 0 and reactor.wheel.due > 0 and has_budget(&portion) and reactor.thread != 0:
        count -= 1
        run_one(first_due(&reactor.wheel, DUE).owner)
    return reactor.wheel.due > 0


cdef bint stop_ended(void *owner) noexcept:
    """Stop and drop timers and watchers of lifetimes that are over."""
    cdef Reactor reactor = <Reactor>owner
    cdef Portion portion = start_portion(reactor.state.uv)
    while not is_empty(&reactor.stopping) and has_budget(&portion) and reactor.thread != 0:
        halt_one(runnable_at(first(&reactor.stopping)))
    return not is_empty(&reactor.stopping)


cdef void stop_few(Reactor reactor) noexcept:
    """Stop what ended just now, if it is not much: then it is over when whoever ended it goes on."""
    cdef int left = FEW_TO_STOP
    while left > 0 and not is_empty(&reactor.stopping):
        left -= 1
        halt_one(runnable_at(first(&reactor.stopping)))


cdef PyObject *runnable_at(Link *sibling) noexcept:
    return <PyObject *>(<char *>sibling - <size_t>&(<Runnable><PyObject *>NULL).sibling)


# --------------------------------------------------------------------------------------------------------------- Reactor

cdef class Task:

    cdef void run_posted(self) noexcept:
        """Its tick has come."""

    cdef void loop_closes(self) noexcept:
        """The loop closes, or is closed: it will not be run."""


cdef class Runnable:

    cdef void run(self) noexcept:
        """Its fd is ready, or its time has come."""

    cdef bint halt(self) noexcept:
        """Stop, and let go of the loop's reference. Whether it was active."""
        return False


@cython.final
@cython.no_gc_clear  # what others find here is never None
cdef class Reactor:
    """A borrowed libuv loop, and the ticks on it. A dispatcher has one."""

    def __cinit__(self):
        self.state.owner = <PyObject *>self
        self.state.on_idle = on_idle
        self.state.calling = &self.calling
        init_list(&self.state.ready[False])
        init_list(&self.state.ready[True])
        init_list(&self.state.polls)
        init_list(&self.state.lost)
        init_list(&self.state.started)
        init_list(&self.posted)
        init_list(&self.stopping)
        init_wheel(&self.wheel, 0)
        self.set_phase(POSTED_PHASE, run_posted, <void *>self)
        self.set_phase(IO_PHASE, run_ready, <void *>self)
        self.set_phase(TIMER_PHASE, run_due, <void *>self)
        self.set_phase(STOP_PHASE, stop_ended, <void *>self)

    def __dealloc__(self):
        free(self.state.poll_of)

    cdef void set_phase(self, int phase, phase_function function, void *owner) noexcept:
        self.phases[phase].function = function
        self.phases[phase].owner = owner

    cdef void set_nogil_phase(self, nogil_phase_function function, void *owner) noexcept:
        self.run_nogil = function
        self.nogil_owner = owner

    cdef void set_idle(self, bint (*has_pending)(void *) noexcept nogil, void (*stop_when_idle)(void *) noexcept nogil,
                       void *owner) noexcept:
        """`has_pending`: true while something pending must keep the loop alive. `stop_when_idle`: called when a tick leaves
        nothing to do."""
        self.has_pending = has_pending
        self.stop_when_idle = stop_when_idle
        self.idle_owner = owner

    # ------------------------------------------------------------------------------------------------------------- timers

    # Without None checks, which need the GIL also for `self`.

    @cython.nonecheck(False)
    cdef void start_node(self, Node *node, uint64_t delay) noexcept nogil:
        """Have the owner of `node` called in the first tick that is no earlier than `delay` ns from now: with 0, the next."""
        node.tick = self.tick_in(delay)
        if is_linked(&node.link):
            remove(&self.wheel, node)
        else:
            self.running_timers += 1
            self.set_busy(True)
        insert(&self.wheel, node)
        if node.place == DUE:
            request_tick(&self.state)
        elif node.place == DUE_NOGIL:
            request_nogil_tick(&self.state)
        elif self.state.alarm.due == 0 or node.tick * NS_PER_MS < self.state.alarm.due:
            self.set_alarm(node.tick)

    @cython.nonecheck(False)
    cdef uint64_t tick_in(self, uint64_t delay) noexcept nogil:
        if delay:
            return (self.state.uv.hrtime() + delay + NS_PER_MS - 1) // NS_PER_MS
        if self.running_timers == self.wheel.due + self.wheel.due_nogil:
            return self.wheel.now  # nothing else waits, so the time does not matter
        return self.state.uv.hrtime() // NS_PER_MS  # after those that are due by now

    @cython.nonecheck(False)
    cdef void stop_node(self, Node *node) noexcept nogil:
        # An alarm that was set for it is left: to ring once for nothing costs less than to be set anew each time.
        remove(&self.wheel, node)
        self.running_timers -= 1
        if self.running_timers == 0 and self.thread != 0:
            request_nogil_tick(&self.state)  # to become idle

    cdef void set_alarm(self, uint64_t tick) noexcept nogil:
        self.state.alarm.due = tick * NS_PER_MS
        arm(self.state.alarm, on_alarm)

    # ------------------------------------------------------------------------------------------------------------ threads

    cdef inline int check(self, str what) except -1:
        """Refuse a call from another thread, after close() or in the child of a fork."""
        if self.thread != PyThread_get_thread_ident():
            return self.refuse(what)
        return 0

    cdef int refuse(self, str what) except -1:
        if self.closed:
            raise DispatcherClosed(f"{what}: the dispatcher is closed")
        if self.forked:
            raise MqError(f"{what}: this process was forked from the one that made the dispatcher, so only close() works "
                          f"here; make a new Dispatcher on a new loop")
        if not self.is_open:
            raise MqError(f"{what}: the dispatcher has not been initialised")
        if asyncio._get_running_loop() is self.loop:  # it was made, or has run, on another thread before
            self.thread = PyThread_get_thread_ident()
            return 0
        raise MqError(f"{what}: only the dispatcher's own thread may do this (thread {self.thread}, not "
                      f"{PyThread_get_thread_ident()}); giving back is what any thread may do")

    cdef void request_tick(self) noexcept nogil:
        """Ask for a tick. The loop's thread."""
        request_tick(&self.state)

    cdef void wake(self) noexcept nogil:
        """Ask for a tick. Any thread: with the GIL, which also keeps close() away; without it on the loop's own."""
        if self.thread == PyThread_get_thread_ident():
            request_tick(&self.state)
        elif self.is_open and not self.closed and not self.forked:
            store_flag(&self.state.gil_needed, True)
            self.state.uv.async_send(uv_of(self.waker))  # cannot fail: open

    cdef void post(self, Task task) noexcept:
        """Have `task.run_posted()` called in a tick. Any thread, with the GIL."""
        if is_linked(&task.posted):
            return
        if not self.is_open or self.closed or self.forked:
            task.loop_closes()
            return
        Py_INCREF(task)
        append(&self.posted, &task.posted)
        self.posted_count += 1
        self.wake()

    cdef void stop_some(self) noexcept:
        """Stop and drop a few of the timers and watchers of lifetimes that are over, if this is the loop's thread: Python code
        may run. The others are for a tick."""
        if not is_empty(&self.stopping) and self.thread == PyThread_get_thread_ident():
            stop_few(self)

    cdef void set_busy(self, bint busy) noexcept nogil:
        if busy == self.busy or self.thread == 0:
            return
        self.busy = busy
        if busy:
            self.state.uv.ref(uv_of(self.waker))
        else:
            self.state.uv.unref(uv_of(self.waker))

    # -------------------------------------------------------------------------------------------------------------- ticks

    cdef void tick(self) noexcept:
        """The phases that need the GIL."""
        cdef PhaseRow *row
        cdef bint more = False
        cdef int phase
        if self.thread == 0:
            return
        self.thread = PyThread_get_thread_ident()
        if self.state.watchdog != NULL:
            note_thread(self.state.watchdog)
        self.state.asked = False
        store_flag(&self.state.gil_needed, False)
        for phase in range(POSTED_PHASE, PHASES):
            row = &self.phases[phase]
            if row.function != NULL:
                more |= row.function(row.owner)
                set_calling(&self.state, NULL)
                if self.thread == 0:  # closed, or in the child of a fork, by what was called
                    return
        if self.retries_exit:
            self.raise_through_loop(self.pending_exit)  # once more
        if more:
            request_tick(&self.state)
        self.end_tick()

    cdef void end_tick(self) noexcept nogil:
        """Stop, unless another tick was requested."""
        cdef uint64_t tick
        if self.state.alarm.due == 0 and next_tick(&self.wheel, &tick):
            self.set_alarm(tick)
        if self.state.asked:
            return
        self.state.awake = False
        self.state.uv.idle_stop(uv_of(self.state.idle))  # cannot fail
        if self.running_timers == 0 and self.state.alarm.due:  # an idle dispatcher does not wake up
            self.state.alarm.due = 0
            self.state.uv.timer_stop(uv_of(self.state.alarm))  # cannot fail
        if self.stop_when_idle != NULL:
            self.stop_when_idle(self.idle_owner)
        if self.busy and self.running_timers == 0 and (self.has_pending == NULL or not self.has_pending(self.idle_owner)):
            self.set_busy(False)

    # ------------------------------------------------------------------------------------------------------------- errors

    # To tell of an error may fail in any way: see _call. What then goes wrong is told where that is possible, and in the
    # end by one line on stderr. A KeyboardInterrupt or SystemExit that comes up meanwhile leaves through the loop.

    cdef void log(self, object logger, int level, str text, tuple args, object error) noexcept:
        """Log, with the traceback of `error` unless it is None. A handler of logging that raises ends nothing here."""
        cdef PyObject *another
        if (<log_function>try_log)(logger, level, text, args, error) < 0:
            another = take_error()
            self.report(<object>another, "a handler of logging")
            Py_DECREF(<object>another)

    cdef void report(self, object error, str where) noexcept:
        """Give an error that no step can take to the loop's exception handler: `call_exception_handler` of asyncio,
        `excepthook` of pyuv."""
        cdef PyObject *another
        if ends_program(error):
            self.raise_through_loop(error)
        elif (<report_function>try_report)(self.loop, self.library, error, where) < 0:
            another = take_error()
            self.report_failed(<object>another, where)
            Py_DECREF(<object>another)

    cdef void report_failed(self, object error, str where) noexcept:
        """Log `error`, which was raised while another one was reported."""
        cdef PyObject *another
        if ends_program(error):
            self.raise_through_loop(error)
        elif (<failure_function>try_log_failure)(error, where) < 0:
            another = take_error()
            if ends_program(<object>another):
                self.raise_through_loop(<object>another)
            PySys_WriteStderr(b"mqcore could not tell of an error of type %.200s\n", type_name(error))
            Py_DECREF(<object>another)

    cdef void raise_through_loop(self, object error) noexcept:
        """Let a KeyboardInterrupt or SystemExit out through the loop. Any thread, with the GIL.

        uvloop ends run_forever() with what a callback of its own raises. pyuv prints and swallows it: there the loop is
        stopped, and the dispatcher's close() raises it. Where that fails it is tried again in the next tick.
        """
        cdef PyObject *another
        self.set_pending_exit(error)
        cdef int raised = (<raise_function>try_raise_through_loop)(self.loop, self.library, error)
        self.retries_exit = raised < 0
        if raised == 0:
            self.set_pending_exit(None)
        elif self.retries_exit:
            another = take_error()
            PySys_WriteStderr(b"mqcore could not end the loop yet: %.200s\n", type_name(<object>another))
            Py_DECREF(<object>another)
            self.wake()

    cdef void set_pending_exit(self, object error) noexcept:
        _before = self.pending_exit  # dropped when this returns, and the field is set
        self.pending_exit = error


cdef Reactor new_reactor():
    """Whole, but not attached to a loop yet: see _attach."""
    return Reactor.__new__(Reactor)


seal_base(Task)
seal_base(Runnable)
