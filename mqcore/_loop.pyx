"""The loop as a dispatcher sees it: timers, watchers, and turns in which all that is ready is called.

libuv calls back without the GIL. Its callbacks only put their handle into the list of what is ready and start an idle
handle; libuv runs idle handles once an iteration, before it polls, and the one here takes the GIL once and calls all
that is ready: a *turn*. Whoever hands control back also only asks for a turn, so nothing ever runs nested.

Everything here belongs to the loop's thread, except `Loop.wake` and `Scope.end`, which any thread may call with the
GIL.
"""

import errno
import logging
import math
import os
import weakref

cimport cython
from cpython.object cimport PyObject, PyObject_AsFileDescriptor
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.stat cimport fstat, struct_stat

from ._libuv cimport (
    UV_ASYNC, UV_IDLE, UV_POLL, UV_PREPARE, UV_TIMER, LibUV, library_of, pointer_of, uv_handle_t)

from .errors import DispatcherClosed, MqError

cdef extern from "Python.h":
    void PyObject_GC_Track(object)
    void PyObject_GC_UnTrack(object)
    bint PyObject_GC_IsTracked(object)
    object PyObject_Call(object, tuple, PyObject *)

READ = 1
WRITE = 2

cdef enum:
    NS_PER_MS = 1_000_000
    LOST = -10_000     # a status of our own: the fd was closed under its poll

# libuv counts in whole milliseconds from the start of the machine; this leaves it room to add.
cdef double LONGEST = 100 * 365.25 * 86400

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
        handle = state.first_started
        state.first_started = handle.next_started
        handle.started = False
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
        self.lost_polls = []
        self.ended_scopes = []
        self.thread = PyThread_get_thread_ident()
        cdef LibUV *lib = self.state.uv
        self.async = self.new_handle(UV_ASYNC)
        cdef int failed = lib.async_init(self.state.pointer, uv_of(self.async), on_async)
        if failed < 0:  # the one that needs something of the system: an fd
            free(self.async)
            raise OSError(-failed, f"libuv cannot make an async handle: {os.strerror(-failed)}")
        self.opened()
        self.state.idle = self.new_handle(UV_IDLE)
        lib.idle_init(self.state.pointer, uv_of(self.state.idle))  # cannot fail
        self.opened()
        self.state.prepare = self.new_handle(UV_PREPARE)
        lib.prepare_init(self.state.pointer, uv_of(self.state.prepare))  # cannot fail
        self.opened()
        # Neither waiting for other threads nor looking at polls is a reason for the loop to go on.
        lib.unref(uv_of(self.async))
        lib.unref(uv_of(self.state.prepare))
        Py_INCREF(self)
        loops.add(self)
        self.wake()  # the first turn learns which thread runs the loop
        return 0

    cdef int close_loop(self) except -1:
        """Stop all timers and watchers and close all handles. Their memory goes with their close callbacks."""
        cdef LibUV *lib = self.state.uv
        cdef Handle *handle
        cdef Timer timer
        self.closed = True
        loops.discard(self)
        self.thread = 0
        if self.forked:
            return 0
        handle = self.timers
        while handle != NULL:
            if handle.owner != NULL:
                timer = <Timer>handle.owner
                timer.halt()
            handle = handle.next_timer
        for poll in (*self.polls.values(), *self.lost_polls):
            for watcher in tuple((<Poll>poll).watchers):
                (<Watcher>watcher).halt()
        self.lost_polls.clear()
        while self.state.first_ready != NULL:
            handle = take_ready(&self.state)
            if handle.closed:
                free_if_unlisted(handle)
        while self.state.first_started != NULL:
            handle = self.state.first_started
            self.state.first_started = handle.next_started
            handle.started = False
            if handle.closed:
                free_if_unlisted(handle)
        handle = self.timers
        while handle != NULL:
            lib.close(uv_of(handle), on_closed)
            handle = handle.next_timer
        lib.close(uv_of(self.async), on_closed)
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
        raise MqError(f"{what}: only the dispatcher's own thread may do this (thread {self.thread}, not "
                      f"{PyThread_get_thread_ident()}); giving back is what any thread may do")

    cdef void wake(self) noexcept:
        """Ask for a turn. Any thread, with the GIL, which also keeps close_loop() away."""
        if self.thread == PyThread_get_thread_ident():
            start_idle(&self.state)
        elif not self.closed and not self.forked:
            self.state.uv.async_send(uv_of(self.async))  # cannot fail: open

    cdef void set_busy(self, bint busy) noexcept:
        if busy == self.busy or self.thread == 0:
            return
        self.busy = busy
        if busy:
            self.state.uv.ref(uv_of(self.async))
        else:
            self.state.uv.unref(uv_of(self.async))

    # -------------------------------------------------------------------------------------------------------------- turns

    cdef void turn(self) noexcept:
        """Call all that is ready, then drain the queue, as far as it lets itself be drained in one turn."""
        cdef Handle *handle
        cdef Timer timer
        cdef Poll poll
        cdef size_t count = self.state.ready_count  # what becomes ready meanwhile has the next turn
        if self.closed or self.forked:
            return
        self.thread = PyThread_get_thread_ident()
        while self.lost_polls:
            (<Poll>self.lost_polls.pop()).tell_lost()
        while self.ended_scopes:
            (<Scope>self.ended_scopes.pop()).stop_all()
        while count > 0 and self.state.first_ready != NULL:
            count -= 1
            handle = take_ready(&self.state)
            if handle.closed:
                free_if_unlisted(handle)
            elif handle.owner == NULL:  # nobody waits for it any more
                if not handle.is_poll:
                    self.free_timer(handle)
            elif handle.is_poll:
                poll = <Poll>handle.owner
                poll.came()
            else:
                timer = <Timer>handle.owner
                timer.fire()
        cdef bint more = self.drain()
        if self.closed:
            return
        if not more and self.state.first_ready == NULL and not self.lost_polls and not self.ended_scopes:
            self.state.awake = False
            self.state.uv.idle_stop(uv_of(self.state.idle))  # cannot fail
            self.rest()

    cdef bint drain(self) noexcept:
        """What else there is to do in a turn; whether there is more. For the dispatcher to override."""
        return False

    cdef void rest(self) noexcept:
        """Called when a turn leaves nothing to do. For the dispatcher to override."""

    # ------------------------------------------------------------------------------------------------------------- errors

    cdef void raised(self, object error, str where) noexcept:
        """Give an error that no step can take to the loop's exception handler: `call_exception_handler` of asyncio,
        `excepthook` of pyuv."""
        try:
            if not isinstance(error, Exception):
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


def throw(error):
    raise error


# ----------------------------------------------------------------------------------------------------------------- Scope

cdef class Scope:

    cdef int check_open(self, str what) except -1:
        """Raise when nothing can be started here any more. For subclasses to extend."""
        return self.owner.check(what)

    cdef void callback_raised(self, object error) noexcept:
        """A callback of a timer or watcher raised `error`. For subclasses to override."""
        self.owner.raised(error, "a callback")

    cdef void end(self) noexcept:
        """No callback is called any more. Any thread, with the GIL; the handles are stopped on the loop's own."""
        self.over = True
        if self.first is None:
            return
        if self.owner.closed or self.owner.thread == PyThread_get_thread_ident():
            self.stop_all()
        else:
            self.owner.ended_scopes.append(self)
            self.owner.wake()

    cdef void stop_all(self) noexcept:
        while self.first is not None:
            self.first.halt()

    def start_timer(self, seconds, callback, *args):
        """Call `callback(*args)` once, after `seconds`, on the dispatcher's thread.

        `seconds`: a number, 0 or more. Never called early (libuv's own timers can be, after a callback that blocked), and
        late only by what the loop is busy with. A running timer is kept alive by the loop, and `callback` and `args` by
        the timer.

        Returns a `Timer`. Raises ValueError for seconds that are negative, not finite or beyond 100 years, TypeError for
        a callback that cannot be called, DispatcherClosed after close(), MqError on another thread than the dispatcher's.
        On a `Hold` also NotHeld, when it is over.
        """
        self.check_open("start_timer()")
        if not callable(callback):
            raise TypeError(f"start_timer() needs a callable, not {callback!r}")
        cdef Timer timer = Timer.__new__(Timer)
        timer.scope = self
        timer.callback = callback
        timer.args = args
        timer.start(seconds)
        return timer

    def watch(self, fd, int events, callback, *args):
        """Call `callback(watcher, events, *args)` whenever `fd` is ready, on the dispatcher's thread, until `stop()`.

        `fd`: an int, or an object with `fileno()`; libuv makes it non-blocking. `events`: READ, WRITE or both; the
        callback gets those that are ready. Level-triggered: called again while the fd stays ready. An error condition,
        such as a refused connection, makes all asked for events ready, so that the next read or write meets it. Several
        watchers may share one fd.

        Stop the watcher before you close the fd. When the fd was closed under a watcher, the watcher is stopped, and
        called once more with events 0 and the OSError in `watcher.error` as soon as that shows: at the latest when the
        watcher is changed or the number is watched again.

        Returns a `Watcher`. Raises OSError for an fd that is not open (EBADF), that cannot be polled, such as a file
        (EPERM), or that asyncio polls already (EEXIST); ValueError for other events; TypeError for a callback that cannot
        be called; and what `start_timer` raises for threads and closing.
        """
        self.check_open("watch()")
        if not callable(callback):
            raise TypeError(f"watch() needs a callable, not {callback!r}")
        check_events(events)
        cdef Watcher watcher = Watcher.__new__(Watcher)
        watcher.scope = self
        watcher.callback = callback
        watcher.args = args
        watcher.fd = PyObject_AsFileDescriptor(fd)
        watcher.wanted = events
        cdef Poll poll = poll_of(self.owner, watcher.fd)
        watcher.poll = poll
        watcher.join()
        poll.watchers.append(watcher)
        try:
            poll.update()
        except OSError:
            watcher.halt()
            raise
        return watcher


cdef int check_events(int events) except -1:
    if not 1 <= events <= 3:
        raise ValueError(f"events must be READ, WRITE or READ | WRITE, not {events}; stop() ends a watcher")
    return 0


cdef class Started:

    cdef void join(self) noexcept:
        self.following = self.scope.first
        if self.following is not None:
            self.following.previous = self
        self.scope.first = self

    cdef void leave(self) noexcept:
        if self.previous is None:
            self.scope.first = self.following
        else:
            self.previous.following = self.following
        if self.following is not None:
            self.following.previous = self.previous
        self.previous = None
        self.following = None

    cdef bint halt(self) noexcept:
        """Stop. Whether it was active. The loop's thread, or while the loop closes."""
        return False

    def stop(self):
        """Stop it, also from inside its own callback. Returns whether it was active; once stopped, or after close(), this
        does nothing. Raises MqError on another thread than the dispatcher's."""
        if not self.scope.owner.closed:
            self.scope.owner.check("stop()")
        return self.halt()


# ----------------------------------------------------------------------------------------------------------------- Timer

@cython.final
cdef class Timer(Started):
    """A one-shot timer, made by `context.start_timer` or `hold.start_timer`.

    May be kept as long as you like; outlives its dispatcher safely. Methods belong to the dispatcher's thread.
    """

    # A running timer is kept alive by the loop, so the garbage collector could never free it: it need not look at it.

    cdef int start(self, double seconds) except -1:
        if not 0 <= seconds <= LONGEST:  # also refuses NaN
            raise ValueError(f"a timer needs seconds that are finite and not negative, not {seconds!r}")
        cdef Handle *handle = self.handle
        if handle == NULL or handle.ready:  # one that is about to fire is let go, and another one started
            self.halt()
            handle = self.scope.owner.new_timer()
            handle.owner = <PyObject *>self
            self.handle = handle
            Py_INCREF(self)
            PyObject_GC_UnTrack(self)
            self.join()
        handle.due = handle.loop.uv.hrtime() + <uint64_t>(seconds * 1e9)
        arm(handle, on_timer)
        return 0

    cdef bint halt(self) noexcept:
        cdef Handle *handle = self.handle
        if handle == NULL:
            return False
        if not handle.ready:
            handle.loop.uv.timer_stop(uv_of(handle))  # cannot fail
        self.handle = NULL
        self.scope.owner.free_timer(handle)
        self.leave()
        if Py_REFCNT(self) > 1:
            PyObject_GC_Track(self)
        Py_DECREF(self)
        return True

    cdef void fire(self) noexcept:
        self.halt()
        if self.scope.over:
            return
        try:
            PyObject_Call(self.callback, self.args, NULL)
        except BaseException as error:
            self.scope.callback_raised(error)

    def reset(self, seconds):
        """Start again, to fire `seconds` from now: before it fired, in its callback or afterwards.

        Raises ValueError, DispatcherClosed, MqError and NotHeld as `start_timer` does.
        """
        self.scope.check_open("reset()")
        self.start(seconds)

    def __repr__(self):
        return f"<mqcore.Timer {'running' if self.handle != NULL else 'stopped'}, calls {self.callback!r}>"


# --------------------------------------------------------------------------------------------------------------- Watcher

@cython.final
cdef class Watcher(Started):
    """Watches an fd; made by `context.watch` or `hold.watch`. Methods belong to the dispatcher's thread.

    `fd`: int. `error`: None, or the OSError (EBADF) that ended it because the fd had been closed.
    """

    cdef bint halt(self) noexcept:
        cdef Poll poll = self.poll
        if poll is None:
            return False
        self.poll = None
        self.leave()
        poll.watchers.remove(self)
        try:
            poll.update()
        except OSError as error:  # the others have been told
            log.debug("fd %d: %s", self.fd, error)
        return True

    cdef void call(self, int events) noexcept:
        if self.scope.over:
            return
        try:
            PyObject_Call(self.callback, (self, events, *self.args), NULL)
        except BaseException as error:
            self.scope.callback_raised(error)

    @property
    def events(self):
        """What it watches for: READ, WRITE or both. May be set while it watches; raises ValueError for anything else,
        OSError (EBADF) when the fd was closed, and MqError, DispatcherClosed or NotHeld as `watch` does. Setting it on a
        stopped watcher is an MqError."""
        return self.wanted

    @events.setter
    def events(self, int events):
        self.scope.check_open("setting events")
        check_events(events)
        if self.poll is None:
            raise MqError(f"the watcher of fd {self.fd} is stopped; watch() makes a new one")
        self.wanted = events
        self.poll.update()

    def __repr__(self):
        return f"<mqcore.Watcher fd={self.fd} {'active' if self.poll is not None else 'stopped'}>"


cdef Poll poll_of(Loop loop, int fd):
    """The poll of `fd`: the one there is, when it still stands for the same file, or a new one."""
    cdef Poll poll = loop.polls.get(fd)
    cdef struct_stat status
    if poll is not None:
        if is_same_file(poll.handle):
            poll.handle.wanted = 0  # the file may have been closed and opened again, which takes it out of the epoll
            return poll
        poll.lose()
    if fstat(fd, &status) != 0:
        raise OSError(errno.EBADF, f"fd {fd} is not open")
    poll = Poll.__new__(Poll)
    poll.loop = loop
    poll.fd = fd
    poll.watchers = []
    poll.handle = loop.new_handle(UV_POLL)
    cdef int failed = loop.state.uv.poll_init(loop.state.pointer, uv_of(poll.handle), fd)
    if failed < 0:
        free(poll.handle)
        raise cannot_watch(fd, -failed)
    loop.opened()
    poll.handle.owner = <PyObject *>poll
    poll.handle.is_poll = True
    poll.handle.fd = fd
    poll.handle.device = status.st_dev
    poll.handle.inode = status.st_ino
    loop.polls[fd] = poll
    return poll


cdef object cannot_watch(int fd, int code):
    if code == errno.EEXIST:
        return OSError(code, f"fd {fd} is polled already by asyncio (add_reader, add_writer or a transport); watch it in one "
                             f"place only, or watch os.dup() of it")
    if code == errno.EPERM:
        return OSError(code, f"fd {fd} cannot be watched: a file or folder is always ready")
    return OSError(code, f"fd {fd} cannot be watched: {os.strerror(code)}")


@cython.final
cdef class Poll:

    cdef int update(self) except -1:
        """Let libuv watch for what the watchers want together, or close when there are none."""
        cdef int wanted = 0
        cdef LoopState *state = &self.loop.state
        for watcher in self.watchers:
            wanted |= (<Watcher>watcher).wanted
        if wanted == 0:
            self.close()
            return 0
        if wanted == self.handle.wanted or self.handle.owner == NULL or self.loop.forked:
            return 0
        if not is_same_file(self.handle):
            self.lose()
            raise OSError(errno.EBADF, f"fd {self.fd} was closed while it was watched; stop its watchers first")
        cdef int failed = state.uv.poll_start(uv_of(self.handle), wanted, on_poll)
        if failed < 0:
            raise cannot_watch(self.fd, -failed)
        self.handle.wanted = wanted
        if not self.handle.started:
            self.handle.started = True
            self.handle.next_started = state.first_started
            state.first_started = self.handle
            state.uv.prepare_start(uv_of(state.prepare), on_prepare)  # cannot fail
        return 0

    cdef void close(self) noexcept:
        if self.handle.owner == NULL:
            return
        self.handle.owner = NULL
        if self.loop.polls.get(self.fd) is self:
            del self.loop.polls[self.fd]
        if not self.loop.forked:  # the epoll is the parent's
            self.loop.state.uv.close(uv_of(self.handle), on_closed)

    cdef void came(self) noexcept:
        """Events came: call the watchers that wait for them."""
        cdef int events = self.handle.events
        cdef int status = self.handle.status
        self.handle.events = 0
        self.handle.status = 0
        if status < 0:
            # libuv has stopped the poll: for EPOLLERR, which the watchers meet as readiness, or for a closed fd.
            if status == LOST or not is_same_file(self.handle):
                self.lose()
                return
            events = READ | WRITE
            self.handle.wanted = 0
        for watcher in tuple(self.watchers):
            if (<Watcher>watcher).poll is self and events & (<Watcher>watcher).wanted:
                (<Watcher>watcher).call(events & (<Watcher>watcher).wanted)
        if status < 0 and self.handle.owner != NULL:
            try:
                self.update()
            except OSError as error:  # told to the watchers
                log.debug("fd %d: %s", self.fd, error)

    cdef void lose(self) noexcept:
        """The fd was closed: let go of it, and have the watchers told in a turn."""
        self.close()
        self.loop.lost_polls.append(self)
        self.loop.wake()

    cdef void tell_lost(self) noexcept:
        cdef Watcher watcher
        for each in tuple(self.watchers):
            watcher = each
            if watcher.poll is self:
                watcher.halt()
                watcher.error = OSError(errno.EBADF, f"fd {self.fd} was closed while it was watched")
                watcher.call(0)
