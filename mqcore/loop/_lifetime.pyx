"""What plugins start on the loop: timers and watchers, and the scope, a context or a hold, that they end with.

All of it belongs to the loop's thread, except `Scope.end`, which any thread may call with the GIL.
"""

import errno
import os

cimport cython
from cpython.object cimport PyObject, PyObject_AsFileDescriptor
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT
from libc.stdint cimport uint64_t

from ._call cimport call_function, what_was_raised
from ._reactor cimport Due, PyThread_get_thread_ident
from ._poll cimport C_READ, C_WRITE, add_watch, change_watch, is_active, remove_watch

from ..errors import MqError

cdef extern from "Python.h":
    void PyObject_GC_Track(object)
    void PyObject_GC_UnTrack(object)
    PyObject *PyObject_Call(PyObject *, PyObject *, PyObject *) noexcept
    Py_ssize_t tuple_size "PyTuple_GET_SIZE"(tuple) noexcept
    PyObject *tuple_item "PyTuple_GET_ITEM"(tuple, Py_ssize_t) noexcept  # borrowed

cdef enum:
    FEW_ARGUMENTS = 6  # of a watcher's callback: for so many no tuple is made

READ = C_READ
WRITE = C_WRITE

cdef tuple NUMBERS = (0, 1, 2, 3)  # events as callbacks get them

# libuv counts in whole milliseconds from the start of the machine; this leaves it room to add.
cdef double LONGEST = 100 * 365.25 * 86400


# ----------------------------------------------------------------------------------------------------------------- Scope

cdef bint making = False  # objects of these classes are made by the core alone


cdef void set_making(bint now) noexcept:
    global making
    making = now


cdef int check_making(object made) except -1:
    if not making:
        raise TypeError(f"{type(made).__name__} objects are made by mqcore alone")
    return 0


cdef class Scope(Due):

    def __cinit__(self):
        check_making(self)

    cdef int check_open(self, str what) except -1:
        """Raise when nothing can be started here any more. For subclasses to override."""

    cdef void callback_raised(self, object error) noexcept:
        """A callback of a timer or watcher raised `error`. For subclasses to override."""

    cdef int check_start(self, str what, object callback) except -1:
        self.check_open(what)
        if not callable(callback):
            raise TypeError(f"{what} needs a callable, not {callback!r}")
        return 0

    cdef void end(self) noexcept:
        """No callback is called any more. Any thread, with the GIL; the handles are stopped on the loop's own."""
        self.over = True
        if self.first is None:
            return
        if self.owner.closed or self.owner.thread == PyThread_get_thread_ident():
            self.stop_all()
        else:
            self.owner.soon(self)

    cdef void in_turn(self) noexcept:
        self.stop_all()

    cdef void stop_all(self) noexcept:
        while self.first is not None:
            self.first.halt()

    def start_timer(self, seconds, callback, *args):
        """Call `callback(*args)` once, after `seconds`, on the dispatcher's thread.

        `seconds`: a number, 0 or more. Never called early (libuv's own timers can be, after a callback that blocked), and
        late only by what the loop is busy with; with 0 in the next turn. A running timer is kept alive by the loop, and
        `callback` and `args` by the timer.

        Returns a `Timer`. Raises ValueError for seconds that are negative, not finite or beyond 100 years, TypeError for
        a callback that cannot be called, DispatcherClosed after close(), MqError on another thread than the dispatcher's.
        On a `Hold` also NotHeld, when it is over.
        """
        cdef double delay = as_seconds(seconds)
        self.check_start("start_timer()", callback)
        set_making(True)
        cdef Timer timer = Timer.__new__(Timer)
        set_making(False)
        timer.scope = self
        timer.callback = callback
        timer.args = args
        timer.start(delay)
        return timer

    def watch(self, fd, events, callback, *args):
        """Call `callback(watcher, events, *args)` whenever `fd` is ready, on the dispatcher's thread, until `stop()`.

        `fd`: an int, or an object with `fileno()`; libuv makes it non-blocking. `events`: READ, WRITE or both; the
        callback gets those that are ready. Level-triggered: called again while the fd stays ready. An error condition,
        such as a refused connection, makes all asked for events ready, so that the next read or write meets it. Several
        watchers may share one fd.

        Stop the watcher before you close the fd: until then libuv takes the number for the old file, also for a connection
        of asyncio's own. When the fd was closed under a watcher, the watcher is stopped, and called once more with events 0
        and the OSError in `watcher.error` as soon as that shows: at the latest when the watcher is changed or the number is
        watched again.

        Returns a `Watcher`. Raises OSError for an fd that is not open (EBADF), that cannot be polled, such as a file
        (EPERM), or that asyncio polls already (EEXIST); ValueError for other events; TypeError for a callback that cannot
        be called; and what `start_timer` raises for threads and closing.
        """
        cdef int number = PyObject_AsFileDescriptor(fd)
        cdef int wanted = as_events(events)
        self.check_start("watch()", callback)
        set_making(True)
        cdef Watcher watcher = Watcher.__new__(Watcher)
        set_making(False)
        watcher.scope = self
        watcher.fd = number
        watcher.watch.owner = <PyObject *>watcher
        watcher.callback = callback
        watcher.args = args
        cdef int failed = add_watch(&self.owner.state, &watcher.watch, number, wanted)
        if failed < 0:
            raise cannot_watch(number, -failed)
        watcher.join()
        Py_INCREF(watcher)  # the loop keeps it as long as it is active
        return watcher


cdef double as_seconds(object seconds) except -1:
    cdef double delay
    try:
        delay = seconds
    except OverflowError:
        delay = float("inf")
    if not 0 <= delay <= LONGEST:  # also refuses NaN
        raise ValueError(f"a timer needs seconds that are finite, not negative and no more than 100 years, not {seconds!r}")
    return delay


cdef int as_events(object events) except -1:
    if not isinstance(events, int):
        raise TypeError(f"events must be READ, WRITE or READ | WRITE, not {events!r}")
    if not C_READ <= events <= C_READ | C_WRITE:
        raise ValueError(f"events must be READ, WRITE or READ | WRITE, not {events}; stop() ends a watcher")
    return events


cdef class Started(Due):

    def __cinit__(self):
        check_making(self)

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

    cdef void returned(self, PyObject *result) noexcept:
        """The callback returned, or with NULL raised."""
        if result == NULL:
            self.scope.callback_raised(what_was_raised())
        else:
            Py_DECREF(<object>result)

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

    cdef void start(self, double seconds) noexcept:
        if self.node.next == NULL:
            self.node.owner = <PyObject *>self
            Py_INCREF(self)
            PyObject_GC_UnTrack(self)
            self.join()
        self.scope.owner.start_node(&self.node, <uint64_t>(seconds * 1e9))

    cdef bint halt(self) noexcept:
        if self.node.next == NULL:
            return False
        self.scope.owner.stop_node(&self.node)
        self.leave()
        if Py_REFCNT(self) > 1:
            PyObject_GC_Track(self)
        Py_DECREF(self)
        return True

    cdef void loop_closes(self) noexcept:
        self.halt()

    cdef void in_turn(self) noexcept:
        self.halt()
        if not self.scope.over:
            self.returned(PyObject_Call(<PyObject *>self.callback, <PyObject *>self.args, NULL))

    def reset(self, seconds):
        """Start again, to fire `seconds` from now: before it fired, in its callback or afterwards.

        Raises ValueError, DispatcherClosed, MqError and NotHeld as `start_timer` does.
        """
        cdef double delay = as_seconds(seconds)
        self.scope.check_open("reset()")
        self.start(delay)

    def __repr__(self):
        return f"<mqcore.Timer {'running' if self.node.next != NULL else 'stopped'}, calls {self.callback!r}>"


# --------------------------------------------------------------------------------------------------------------- Watcher

cdef class Watcher(Started):
    """Watches an fd; made by `context.watch` or `hold.watch`. Methods belong to the dispatcher's thread.

    `fd`: int. `error`: None, or the OSError that ended it: EBADF because the fd had been closed, EEXIST because asyncio took
    it.
    """

    cdef bint halt(self) noexcept:
        if not remove_watch(&self.scope.owner.state, &self.watch):
            return False
        self.leave()
        Py_DECREF(self)
        return True

    cdef void loop_closes(self) noexcept:
        self.halt()

    cdef void in_turn(self) noexcept:
        # One that was called before it may have changed what it waits for.
        cdef int events = self.watch.came & self.watch.wanted
        cdef int lost = self.watch.lost
        self.watch.came = 0
        if lost:
            self.halt()
            self.error = lost_while_watched(self.fd, lost)
            self.call(0)
        elif events:
            self.call(events)

    cdef void call(self, int events) noexcept:
        cdef PyObject *space[3 + FEW_ARGUMENTS]
        cdef Py_ssize_t count = tuple_size(self.args)
        cdef Py_ssize_t index
        if self.scope.over:
            return
        if count > FEW_ARGUMENTS:
            args = (self, events, *self.args)
            self.returned(PyObject_Call(<PyObject *>self.callback, <PyObject *>args, NULL))
            return
        space[1] = <PyObject *>self
        space[2] = tuple_item(NUMBERS, events)
        for index in range(count):
            space[3 + index] = tuple_item(self.args, index)
        self.returned(call_function(<PyObject *>self.callback, space + 1, 2 + count))

    @property
    def events(self):
        """What it watches for: READ, WRITE or both. May be set while it watches; raises ValueError for anything else,
        OSError (EBADF) when the fd was closed, and MqError, DispatcherClosed or NotHeld as `watch` does. Setting it on a
        stopped watcher is an MqError."""
        return self.watch.wanted

    @events.setter
    def events(self, events):
        cdef int wanted = as_events(events)
        self.scope.check_open("setting events")
        if not is_active(&self.watch):
            raise MqError(f"the watcher of fd {self.fd} is stopped; watch() makes a new one")
        cdef int failed = change_watch(&self.watch, wanted)
        if failed < 0:
            raise lost_while_watched(self.fd, -failed)

    def __repr__(self):
        return f"<mqcore.Watcher fd={self.fd} {'active' if is_active(&self.watch) else 'stopped'}>"


cdef object lost_while_watched(int fd, int code):
    if code == errno.EBADF:
        return OSError(code, f"fd {fd} was closed while it was watched; stop its watchers first")
    return cannot_watch(fd, code)


cdef object cannot_watch(int fd, int code):
    if code == errno.EBADF:
        return OSError(code, f"fd {fd} is not open")
    if code == errno.EEXIST:
        return OSError(code, f"fd {fd} is polled already by asyncio (add_reader, add_writer or a transport), another "
                             f"dispatcher or a pyuv.Poll on this loop; watch it in one place only, or watch os.dup() of it")
    if code == errno.EPERM:
        return OSError(code, f"fd {fd} cannot be watched: a file or folder is always ready")
    return OSError(code, f"fd {fd} cannot be watched: {os.strerror(code)}")
