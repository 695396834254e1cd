"""The loop as a dispatcher sees it, and its turns, in which all that is ready is called.

libuv calls back without the GIL. Its callbacks only note what is ready and start an idle handle; libuv runs idle handles
once an iteration, before it polls, and the one here takes the GIL once and calls all that is ready: a *turn*. Whoever
hands control back also only asks for a turn, so nothing ever runs nested. One timer of libuv's, the alarm, serves all
timers: they wait in a wheel.

A turn begins with what needs no GIL: callbacks of native plugins, and native hooks (`bare_turn`). The GIL is only taken when
something else is left to do.

Everything here belongs to the loop's thread, except `Loop.wake` and `Loop.soon`, which any thread may call with the GIL.
"""

import asyncio
import logging
import os
import weakref

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from ._atomic cimport add, load_flag, store_flag
from ._libuv cimport (
    UV_ASYNC, UV_IDLE, UV_PREPARE, UV_TIMER, LibUV, library_of, pointer_of, uv_handle_t)
from ._wheel cimport DUE, DUE_BARE, Node, any_node, insert, next_tick, remove, turn_wheel

from ..errors import DispatcherClosed, MqError

cdef enum:
    NS_PER_MS = 1_000_000

log = logging.getLogger("mqcore")

cdef int handles_made = 0   # atomic
cdef int handles_freed = 0
loops = weakref.WeakSet()  # those that are open, for the child of a fork


def handles():
    """How many libuv handles this process has made and freed: `(made, freed)`. Equal when every dispatcher is closed and
    its loop has run once more. For tests; any thread."""
    return handles_made, handles_freed


def after_fork_in_child():
    # The child shares the parent's epoll: whatever it told libuv, the parent would feel.
    for loop in list(loops):
        (<Loop>loop).thread = 0
        (<Loop>loop).forked = True


os.register_at_fork(after_in_child=after_fork_in_child)


# ---------------------------------------------------------------------------------------------------------- libuv's side

cdef void ask_for_turn(LoopState *state) noexcept nogil:
    store_flag(&state.gil_needed, True)
    stir(state)


cdef void stir(LoopState *state) noexcept nogil:
    """Ask for a turn, in which there may be nothing to do that needs the GIL."""
    state.asked = True
    if not state.awake:
        state.awake = True
        state.uv.idle_start(uv_of(state.idle), on_idle)  # cannot fail: there is a callback


cdef void unlink_ready(LoopState *state, Watch *watch) noexcept nogil:
    """Take `watch` out of the ring of what is ready."""
    cdef Watch **first = &state.ready[watch.bare]
    watch.ready = False
    state.ready_count[watch.bare] -= 1
    if watch.next_ready == watch:
        first[0] = NULL
        return
    watch.next_ready.previous_ready = watch.previous_ready
    watch.previous_ready.next_ready = watch.next_ready
    if first[0] == watch:
        first[0] = watch.next_ready


cdef Handle *take_started(LoopState *state) noexcept nogil:
    cdef Handle *handle = state.first_started
    state.first_started = handle.next_started
    handle.started = False
    return handle


cdef void arm(Handle *handle, uv_callback callback) noexcept nogil:
    """Start a timer for `handle.due`.

    libuv adds the timeout to the loop's own time, which is in whole ms and as old as the loop's last look at the clock.
    Both count from the same start as uv_hrtime(), so the due time, rounded up, less the loop's time can be late but not
    early.
    """
    cdef LibUV *lib = handle.loop.uv
    cdef uint64_t due = (handle.due + NS_PER_MS - 1) // NS_PER_MS
    cdef uint64_t now = lib.now(handle.loop.pointer)
    lib.timer_start(uv_of(handle), callback, due - now if due > now else 0, 0)  # cannot fail: open, with a callback


cdef void on_alarm(uv_handle_t *uv_handle) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    if handle.loop.uv.hrtime() < handle.due:
        arm(handle, on_alarm)
    else:
        handle.due = 0
        handle.rung = True
        stir(handle.loop)


cdef void on_async(uv_handle_t *uv_handle) noexcept nogil:
    stir(header_of(uv_handle).loop)


@cython.nonecheck(False)
cdef void on_idle(uv_handle_t *uv_handle) noexcept nogil:
    cdef LoopState *state = header_of(uv_handle).loop
    cdef bint more = False
    state.asked = False
    if state.alarm.rung:
        state.alarm.rung = False
        turn_wheel(&(<Loop>state.owner).wheel, state.uv.hrtime() // NS_PER_MS)
        if (<Loop>state.owner).wheel.due:
            store_flag(&state.gil_needed, True)
    if (<Loop>state.owner).bare_turn != NULL:
        if (<Loop>state.owner).thread == PyThread_get_thread_ident():
            more = (<Loop>state.owner).bare_turn(<Loop>state.owner)
        else:
            more = True  # in the next turn, as this one learns that another thread runs the loop
            store_flag(&state.gil_needed, True)
    if load_flag(&state.gil_needed):
        turn_with_gil(state)
    elif (<Loop>state.owner).thread != 0:
        (<Loop>state.owner).come_to_rest()
    if more and (<Loop>state.owner).thread != 0:
        stir(state)


cdef void turn_with_gil(LoopState *state) noexcept with gil:
    cdef Loop loop = <Loop>state.owner
    loop.turn()


cdef void on_closed(uv_handle_t *uv_handle) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    cdef LoopState *state = handle.loop
    add(&handles_freed, 1)
    state.open_handles -= 1
    handle.closed = True
    free_if_unlisted(handle)
    if state.open_handles == 0:
        let_loop_go(state)


cdef void let_loop_go(LoopState *state) noexcept with gil:
    Py_DECREF(<Loop>state.owner)  # the reference that open_loop() took


# --------------------------------------------------------------------------------------------------------------- Handles

cdef Handle *new_handle(LoopState *state, int kind) noexcept nogil:
    """A handle that is not initialised yet; NULL when there is no memory."""
    cdef Handle *handle = <Handle *>calloc(1, header_size() + state.uv.handle_size(kind))
    if handle != NULL:
        handle.loop = state
    return handle


cdef void opened(LoopState *state) noexcept nogil:
    """It was initialised: it has to be closed."""
    add(&handles_made, 1)
    state.open_handles += 1


cdef void close_handle(Handle *handle) noexcept nogil:
    """Its memory goes with its close callback."""
    handle.loop.uv.close(uv_of(handle), on_closed)


cdef void free_if_unlisted(Handle *handle) noexcept nogil:
    if not handle.started:
        free(handle)


# ------------------------------------------------------------------------------------------------------------------ Loop

cdef class Due:

    cdef void in_turn(self) noexcept:
        """Its turn has come: it was given to `soon`, its fd is ready, or its time has come."""

    cdef void loop_closes(self) noexcept:
        """The loop closes: stop."""


cdef class Loop:
    """A borrowed libuv loop, and the turns on it. The base of the dispatcher."""

    cdef int open_loop(self, object loop) except -1:
        """Attach to `loop`. Keeps itself, and so the loop, alive until close_loop() and the close callbacks after it."""
        self.library = library_of(loop)
        self.loop = loop
        self.sees_double_polls = self.library.owner != "pyuv"
        self.state.owner = <PyObject *>self
        self.state.uv = &self.library.table
        self.state.pointer = pointer_of(loop)
        self.due = []
        self.thread = PyThread_get_thread_ident()
        cdef LibUV *lib = self.state.uv
        self.waker = self.make_handle(UV_ASYNC)
        cdef int failed = lib.async_init(self.state.pointer, uv_of(self.waker), on_async)
        if failed < 0:  # the one that needs something of the system: an fd
            free(self.waker)
            raise OSError(-failed, f"libuv cannot make an async handle: {os.strerror(-failed)}")
        opened(&self.state)
        self.state.idle = self.make_handle(UV_IDLE)
        lib.idle_init(self.state.pointer, uv_of(self.state.idle))  # cannot fail
        opened(&self.state)
        self.state.prepare = self.make_handle(UV_PREPARE)
        lib.prepare_init(self.state.pointer, uv_of(self.state.prepare))  # cannot fail
        opened(&self.state)
        self.state.alarm = self.make_handle(UV_TIMER)
        lib.timer_init(self.state.pointer, uv_of(self.state.alarm))  # cannot fail
        opened(&self.state)
        self.wheel.now = lib.hrtime() // NS_PER_MS
        # These are no reason for the loop to go on; what is held and timers that run make the waker one.
        lib.unref(uv_of(self.waker))
        lib.unref(uv_of(self.state.prepare))
        lib.unref(uv_of(self.state.alarm))
        Py_INCREF(self)
        loops.add(self)
        self.wake()  # the first turn learns which thread runs the loop
        return 0

    cdef int close_loop(self) except -1:
        """Stop all timers and watchers and close all handles. Their memory goes with their close callbacks."""
        cdef Handle *handle
        cdef Node *node
        cdef Due due
        self.closed = True
        loops.discard(self)
        self.thread = 0
        if self.forked:
            return 0
        node = any_node(&self.wheel)
        while node != NULL:
            due = <Due>node.owner
            due.loop_closes()
            node = any_node(&self.wheel)
        for place in range(self.state.poll_places):
            while self.state.polls[place] != NULL:  # it is closed with its last watch
                due = <Due>self.state.polls[place].first.owner
                due.loop_closes()
        while self.state.ready[0] != NULL:  # what is lost
            due = <Due>self.state.ready[0].owner
            due.loop_closes()
        for due in self.due:
            due.loop_closes()
        self.due.clear()
        while self.state.first_started != NULL:
            handle = take_started(&self.state)
            if handle.closed:
                free_if_unlisted(handle)
        close_handle(self.waker)
        close_handle(self.state.idle)
        close_handle(self.state.prepare)
        close_handle(self.state.alarm)
        return 0

    def __dealloc__(self):
        free(self.state.polls)

    cdef Handle *make_handle(self, int kind) except NULL:
        cdef Handle *handle = new_handle(&self.state, kind)
        if handle == NULL:
            raise MemoryError()
        return handle

    # ------------------------------------------------------------------------------------------------------------- timers

    # Without None checks, which need the GIL also for `self`.

    @cython.nonecheck(False)
    cdef void start_node(self, Node *node, uint64_t delay) noexcept nogil:
        """Have the owner of `node` called in the first turn that is no earlier than `delay` ns from now: with 0, the next."""
        node.tick = self.tick_in(delay)
        if node.next != NULL:
            remove(&self.wheel, node)
        else:
            self.running_timers += 1
            self.set_busy(True)
        insert(&self.wheel, node)
        if node.place == DUE:
            ask_for_turn(&self.state)
        elif node.place == DUE_BARE:
            stir(&self.state)
        elif self.state.alarm.due == 0 or node.tick * NS_PER_MS < self.state.alarm.due:
            self.set_alarm(node.tick)

    @cython.nonecheck(False)
    cdef uint64_t tick_in(self, uint64_t delay) noexcept nogil:
        if delay:
            return (self.state.uv.hrtime() + delay + NS_PER_MS - 1) // NS_PER_MS
        if self.running_timers == self.wheel.due + self.wheel.due_bare:
            return self.wheel.now  # nothing else waits, so the time does not matter
        return self.state.uv.hrtime() // NS_PER_MS  # after those that are due by now

    @cython.nonecheck(False)
    cdef void stop_node(self, Node *node) noexcept nogil:
        # An alarm that was set for it is left: to ring once for nothing costs less than to be set anew each time.
        remove(&self.wheel, node)
        self.running_timers -= 1
        if self.running_timers == 0 and self.thread != 0:
            stir(&self.state)  # to come to rest

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
        if asyncio._get_running_loop() is self.loop:  # it was made, or has run, on another thread before
            self.thread = PyThread_get_thread_ident()
            return 0
        raise MqError(f"{what}: only the dispatcher's own thread may do this (thread {self.thread}, not "
                      f"{PyThread_get_thread_ident()}); giving back is what any thread may do")

    cdef void wake(self) noexcept nogil:
        """Ask for a turn. Any thread: with the GIL, which also keeps close_loop() away; without it on the loop's own."""
        if self.thread == PyThread_get_thread_ident():
            ask_for_turn(&self.state)
        elif not self.closed and not self.forked:
            store_flag(&self.state.gil_needed, True)
            self.state.uv.async_send(uv_of(self.waker))  # cannot fail: open

    cdef void soon(self, Due due) noexcept:
        """Have `due.in_turn()` called in a turn. Any thread, with the GIL."""
        self.due.append(due)
        self.wake()

    cdef void set_busy(self, bint busy) noexcept nogil:
        if busy == self.busy or self.thread == 0:
            return
        self.busy = busy
        if busy:
            self.state.uv.ref(uv_of(self.waker))
        else:
            self.state.uv.unref(uv_of(self.waker))

    # -------------------------------------------------------------------------------------------------------------- turns

    cdef void turn(self) noexcept:
        """Call all that is ready, then drain the queue, as far as it lets itself be drained in one turn."""
        cdef Due due
        cdef size_t count = self.state.ready_count[0]  # what becomes ready meanwhile has the next turn
        if self.thread == 0:
            return
        self.thread = PyThread_get_thread_ident()
        self.state.asked = False
        store_flag(&self.state.gil_needed, False)
        while self.due and self.thread != 0:
            due = self.due.pop(0)
            due.in_turn()
        while count > 0 and self.state.ready[0] != NULL and self.thread != 0:
            count -= 1
            due = <Due>self.state.ready[0].owner
            unlink_ready(&self.state, self.state.ready[0])
            due.in_turn()
        count = self.wheel.due
        while count > 0 and self.wheel.due > 0 and self.thread != 0:
            count -= 1
            due = <Due>self.wheel.first[DUE].owner
            due.in_turn()
        if self.thread != 0:
            self.drain()
        if self.thread != 0:  # else closed, or in the child of a fork, by what was called
            self.come_to_rest()

    cdef void come_to_rest(self) noexcept nogil:
        """The end of a turn: stop, unless another was asked for."""
        cdef uint64_t tick
        if self.state.alarm.due == 0 and next_tick(&self.wheel, &tick):
            self.set_alarm(tick)
        if not self.state.asked:
            self.state.awake = False
            self.state.uv.idle_stop(uv_of(self.state.idle))  # cannot fail
            self.rest()

    cdef void drain(self) noexcept:
        """What else there is to do in a turn; what is left for another turn, that asks for one. For the dispatcher to
        override."""

    cdef bint engaged(self) noexcept nogil:
        """Whether it is waited for something that the loop has to go on for. For the dispatcher to extend."""
        return self.running_timers > 0

    cdef void rest(self) noexcept nogil:
        """Called when a turn leaves nothing to do. For the dispatcher to extend."""
        if self.running_timers == 0 and self.state.alarm.due:  # an idle dispatcher does not wake up
            self.state.alarm.due = 0
            self.state.uv.timer_stop(uv_of(self.state.alarm))  # cannot fail
        if self.busy and not self.engaged():
            self.set_busy(False)

    # ------------------------------------------------------------------------------------------------------------- errors

    cdef void tell(self, object logger, int level, str text, tuple args, object error) noexcept:
        """Log, with the traceback of `error` unless it is None. A handler of logging that raises ends nothing here."""
        try:
            logger.log(level, text, *args, exc_info=error)
        except BaseException as another:
            self.raised(another, "a handler of logging")

    cdef void raised(self, object error, str where) noexcept:
        """Give an error that no step can take to the loop's exception handler: `call_exception_handler` of asyncio,
        `excepthook` of pyuv."""
        try:
            if ends_program(error):
                self.escape(error)
            elif self.library.owner == "uvloop":
                self.loop.call_exception_handler({"message": f"error in {where}", "exception": error})
            elif self.loop.excepthook is not None:
                self.loop.excepthook(type(error), error, error.__traceback__)
            else:
                log.error("error in %s", where, exc_info=error)
        except BaseException as another:
            log.error("error in the loop's exception handler, called for an error in %s", where, exc_info=another)

    cdef void escape(self, object error) noexcept:
        """Let a KeyboardInterrupt or SystemExit out through the loop.

        uvloop ends run_forever() with what a callback of its own raises. pyuv prints and swallows it: there the loop is
        stopped, and close() raises it.
        """
        try:
            if self.library.owner == "pyuv":
                self.escaped = error
                self.loop.stop()
            elif self.loop.is_closed():
                log.error("the loop is closed, so nothing can end with this error", exc_info=error)
            else:
                self.loop.call_soon(throw, error)
        except BaseException as another:
            log.error("could not end the loop with %r", error, exc_info=another)


cdef bint ends_program(object error) noexcept:
    """Whether it has to leave through the loop."""
    return isinstance(error, (KeyboardInterrupt, SystemExit))


def throw(error):
    raise error
