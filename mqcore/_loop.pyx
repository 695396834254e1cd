"""The loop as a dispatcher sees it, and its turns, in which all that is ready is called.

libuv calls back without the GIL. Its callbacks only put their handle into the list of what is ready and start an idle
handle; libuv runs idle handles once an iteration, before it polls, and the one here takes the GIL once and calls all
that is ready: a *turn*. Whoever hands control back also only asks for a turn, so nothing ever runs nested.

Everything here belongs to the loop's thread, except `Loop.wake` and `Loop.soon`, which any thread may call with the GIL.
"""

import asyncio
import logging
import os
import weakref

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.stat cimport fstat, struct_stat

from ._libuv cimport (
    UV_ASYNC, UV_IDLE, UV_PREPARE, UV_TIMER, LibUV, library_of, pointer_of, uv_handle_t)

from .errors import DispatcherClosed, MqError

cdef enum:
    NS_PER_MS = 1_000_000

log = logging.getLogger("mqcore")

cdef size_t handles_made = 0
cdef size_t handles_freed = 0
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

cdef void start_idle(LoopState *state) noexcept nogil:
    if not state.awake:
        state.awake = True
        state.uv.idle_start(uv_of(state.idle), on_idle)  # cannot fail: there is a callback


cdef void make_ready(Handle *handle) noexcept nogil:
    cdef LoopState *state = handle.loop
    if handle.ready:
        return
    handle.ready = True
    handle.next = NULL
    if state.first_ready == NULL:
        state.first_ready = handle
    else:
        state.last_ready.next = handle
    state.last_ready = handle
    state.ready_count += 1
    start_idle(state)


cdef Handle *take_ready(LoopState *state) noexcept nogil:
    cdef Handle *handle = state.first_ready
    state.first_ready = handle.next
    state.ready_count -= 1
    handle.ready = False
    return handle


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


cdef void on_timer(uv_handle_t *uv_handle) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    if handle.loop.uv.hrtime() < handle.due:
        arm(handle, on_timer)
    else:
        make_ready(handle)


cdef void on_poll(uv_handle_t *uv_handle, int status, int events) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    handle.events |= events
    if status < 0:
        handle.status = status
    make_ready(handle)


cdef void on_prepare(uv_handle_t *uv_handle) noexcept nogil:
    """Look at the polls that were started since libuv polled last, for it aborts the process when it is about to add one
    whose fd was closed in between."""
    cdef LoopState *state = header_of(uv_handle).loop
    cdef Handle *handle
    while state.first_started != NULL:
        handle = take_started(state)
        if handle.closed:
            free_if_unlisted(handle)
        elif handle.owner != NULL and not is_same_file(handle):
            state.uv.poll_stop(uv_of(handle))  # cannot fail
            handle.status = LOST
            make_ready(handle)
    state.uv.prepare_stop(uv_handle)  # cannot fail


cdef bint is_same_file(Handle *handle) noexcept nogil:
    cdef struct_stat status
    return fstat(handle.fd, &status) == 0 and status.st_dev == handle.device and status.st_ino == handle.inode


cdef void on_async(uv_handle_t *uv_handle) noexcept nogil:
    start_idle(header_of(uv_handle).loop)


cdef void on_idle(uv_handle_t *uv_handle) noexcept with gil:
    cdef Loop loop = <Loop>header_of(uv_handle).loop.owner
    loop.turn()


cdef void on_closed(uv_handle_t *uv_handle) noexcept with gil:
    cdef Handle *handle = header_of(uv_handle)
    cdef Loop loop = <Loop>handle.loop.owner
    global handles_freed
    handles_freed += 1
    loop.open_handles -= 1
    handle.closed = True
    free_if_unlisted(handle)
    if loop.open_handles == 0:
        Py_DECREF(loop)  # the reference that open_loop() took


cdef void free_if_unlisted(Handle *handle) noexcept nogil:
    if not handle.ready and not handle.started:
        free(handle)


# ------------------------------------------------------------------------------------------------------------------ Loop

cdef class Due:

    cdef void in_turn(self) noexcept:
        """Its turn has come: it was given to `soon`, or its handle became ready."""

    cdef void loop_closes(self) noexcept:
        """The loop closes: let go of the handle."""


cdef class Loop:
    """A borrowed libuv loop, and the turns on it. The base of the dispatcher."""

    cdef int open_loop(self, object loop) except -1:
        """Attach to `loop`. Keeps itself, and so the loop, alive until close_loop() and the close callbacks after it."""
        self.library = library_of(loop)
        self.loop = loop
        self.state.owner = <PyObject *>self
        self.state.uv = &self.library.table
        self.state.pointer = pointer_of(loop)
        self.polls = {}
        self.due = []
        self.thread = PyThread_get_thread_ident()
        cdef LibUV *lib = self.state.uv
        self.waker = self.new_handle(UV_ASYNC)
        cdef int failed = lib.async_init(self.state.pointer, uv_of(self.waker), on_async)
        if failed < 0:  # the one that needs something of the system: an fd
            free(self.waker)
            raise OSError(-failed, f"libuv cannot make an async handle: {os.strerror(-failed)}")
        self.opened()
        self.state.idle = self.new_handle(UV_IDLE)
        lib.idle_init(self.state.pointer, uv_of(self.state.idle))  # cannot fail
        self.opened()
        self.state.prepare = self.new_handle(UV_PREPARE)
        lib.prepare_init(self.state.pointer, uv_of(self.state.prepare))  # cannot fail
        self.opened()
        # Neither waiting for other threads nor looking at polls is a reason for the loop to go on.
        lib.unref(uv_of(self.waker))
        lib.unref(uv_of(self.state.prepare))
        Py_INCREF(self)
        loops.add(self)
        self.wake()  # the first turn learns which thread runs the loop
        return 0

    cdef int close_loop(self) except -1:
        """Stop all timers and watchers and close all handles. Their memory goes with their close callbacks."""
        cdef LibUV *lib = self.state.uv
        cdef Handle *handle
        cdef Due due
        self.closed = True
        loops.discard(self)
        self.thread = 0
        if self.forked:
            return 0
        handle = self.timers
        while handle != NULL:
            if handle.owner != NULL:
                due = <Due>handle.owner
                due.loop_closes()
            handle = handle.next_timer
        for due in (*self.polls.values(), *self.due):
            due.loop_closes()
        self.due.clear()
        while self.state.first_ready != NULL:
            handle = take_ready(&self.state)
            if handle.closed:
                free_if_unlisted(handle)
        while self.state.first_started != NULL:
            handle = take_started(&self.state)
            if handle.closed:
                free_if_unlisted(handle)
        handle = self.timers
        while handle != NULL:
            lib.close(uv_of(handle), on_closed)
            handle = handle.next_timer
        lib.close(uv_of(self.waker), on_closed)
        lib.close(uv_of(self.state.prepare), on_closed)
        lib.close(uv_of(self.state.idle), on_closed)
        return 0

    cdef Handle *new_handle(self, int kind) except NULL:
        handle = <Handle *>calloc(1, header_size() + self.state.uv.handle_size(kind))
        if handle == NULL:
            raise MemoryError()
        handle.loop = &self.state
        return handle

    cdef void opened(self) noexcept:
        global handles_made
        handles_made += 1
        self.open_handles += 1

    cdef Handle *new_timer(self) except NULL:
        """A stopped timer: one that was used before, or a new one. Timers are closed only with the loop."""
        cdef Handle *handle = self.free_timers
        if handle != NULL:
            self.free_timers = handle.next
            return handle
        handle = self.new_handle(UV_TIMER)
        self.state.uv.timer_init(self.state.pointer, uv_of(handle))  # cannot fail
        self.opened()
        handle.next_timer = self.timers
        self.timers = handle
        return handle

    cdef void free_timer(self, Handle *handle) noexcept:
        handle.owner = NULL
        if not handle.ready:  # else its turn does this
            handle.next = self.free_timers
            self.free_timers = handle

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

    cdef void wake(self) noexcept:
        """Ask for a turn. Any thread, with the GIL, which also keeps close_loop() away."""
        if self.thread == PyThread_get_thread_ident():
            start_idle(&self.state)
        elif not self.closed and not self.forked:
            self.state.uv.async_send(uv_of(self.waker))  # cannot fail: open

    cdef void soon(self, Due due) noexcept:
        """Have `due.in_turn()` called in a turn. Any thread, with the GIL."""
        self.due.append(due)
        self.wake()

    cdef void set_busy(self, bint busy) noexcept:
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
        cdef Handle *handle
        cdef Due due
        cdef size_t count = self.state.ready_count  # what becomes ready meanwhile has the next turn
        if self.thread == 0:
            return
        self.thread = PyThread_get_thread_ident()
        while self.due and self.thread != 0:
            due = self.due.pop(0)
            due.in_turn()
        while count > 0 and self.state.first_ready != NULL and self.thread != 0:
            count -= 1
            handle = take_ready(&self.state)
            if handle.closed:
                free_if_unlisted(handle)
            elif handle.owner == NULL:  # nobody waits for it any more
                if not handle.is_poll:
                    self.free_timer(handle)
            else:
                due = <Due>handle.owner
                due.in_turn()
        if self.thread != 0:
            self.drain()
        if self.thread == 0:  # closed, or in the child of a fork, by what was called
            return
        # Only now, as all that was called may have asked for another turn.
        if not self.pending():
            self.state.awake = False
            self.state.uv.idle_stop(uv_of(self.state.idle))  # cannot fail
            self.rest()

    cdef void drain(self) noexcept:
        """What else there is to do in a turn. For the dispatcher to override."""

    cdef bint pending(self) noexcept:
        """Whether there is something to do for another turn. For the dispatcher to extend."""
        return self.state.first_ready != NULL or bool(self.due)

    cdef void rest(self) noexcept:
        """Called when a turn leaves nothing to do. For the dispatcher to override."""

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
