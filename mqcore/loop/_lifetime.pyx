"""What plugins start on the loop: timers and watchers, and the lifetime, a context's or a hold's, that they end with.

All of it belongs to the loop's thread, except `Lifetime.detach` and `end`, which any thread may call with the GIL.

Whatever takes memory or calls the user's code comes first, then the checks, and after these only C: so nothing can be started
on a lifetime that ended in between.
"""

import errno
import os

cimport cython
from cpython.object cimport PyObject, PyObject_AsFileDescriptor
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT
from libc.stdint cimport uint64_t

from ._call cimport ROOM, call_function, is_a, take_error
from ._list cimport append, append_all, init_list, is_empty, is_linked, unlink
from ._poll cimport C_READ, C_WRITE, add_watch, change_watch, is_active, lost_for, remove_watch
from ._seal cimport seal, seal_base
from ._state cimport Caller, set_calling

from ..errors import MqError

cdef extern from *:
    """
    #define mqcore_name_of(function) (((PyCFunctionObject *)(function))->m_ml->ml_name)
    """
    const char *name_of "mqcore_name_of"(object) noexcept

cdef extern from "Python.h":
    void PyObject_GC_Track(object)
    void PyObject_GC_UnTrack(object)
    bint PyCallable_Check(object)
    bint PyCoro_CheckExact(PyObject *) noexcept
    bint PyCFunction_Check(object)
    PyObject *PyCFunction_GET_SELF(object)  # borrowed; NULL for a static method
    bint PyLong_Check(object)
    long PyLong_AsLongAndOverflow(object, int *overflow) except? -1
    PyObject *PyObject_Call(PyObject *, PyObject *, PyObject *) noexcept
    PyObject *PyTuple_New(Py_ssize_t) noexcept
    Py_ssize_t size_of "PyTuple_GET_SIZE"(tuple) noexcept
    Py_ssize_t tuple_size "PyTuple_GET_SIZE"(PyObject *) noexcept
    PyObject *tuple_item "PyTuple_GET_ITEM"(PyObject *, Py_ssize_t) noexcept  # borrowed
    void PyTuple_SET_ITEM(PyObject *, Py_ssize_t, object) noexcept  # steals the reference

ctypedef int (*lose_function)(Watcher, int) noexcept
ctypedef int (*refuse_function)(PyObject *) noexcept

cdef enum:
    FEW_ARGUMENTS = 6  # of a watcher's callback: for so many no tuple is made

READ = C_READ
WRITE = C_WRITE

cdef tuple NUMBERS = (0, 1, 2, 3)  # events as callbacks get them

# libuv counts in whole milliseconds from the start of the machine; this leaves it room to add.
cdef double LONGEST = 100 * 365.25 * 86400


cdef Caller nobody  # whose callbacks those of a lifetime are that is no plugin's


# --------------------------------------------------------------------------------------------------------------- Lifetime

@cython.no_gc_clear  # methods need the reactor, also when they are called by another object of the same garbage
cdef class Lifetime:

    def __cinit__(self):
        init_list(&self.running)
        self.caller = &nobody

    cdef int check_open(self, str what) except -1:
        """Raise when nothing can be started here any more. For subclasses to override."""
        if self.over:
            raise MqError(f"{what}: it has ended")
        return self.reactor.check(what)

    cdef Py_ssize_t arguments_of(self, const char *method, Py_ssize_t count) noexcept:
        """How many arguments a method takes that is likely to be a callback; else `count`. For subclasses to override."""
        return count

    cdef void callback_raised(self, object error) noexcept:
        """A callback of a timer or watcher raised `error`. For subclasses to override."""
        self.reactor.report(error, "a callback of a timer or watcher")

    cdef int check_start(self, str what, object callback, Py_ssize_t count) except -1:
        """`count`: how many arguments the callback will get."""
        if not PyCallable_Check(callback):
            hint = "" if callback is not None else (
                "; a function that is called there is called at once, and this is what it returned: hand it over without "
                "calling it, and its arguments after it, as in start_timer(1.0, context.continue_, message)")
            raise TypeError(f"{what} needs a callable, not {callback!r}{hint}")
        if wanted_by(callback, count) != count:
            refuse_count(what, callback, count)
        return self.check_open(what)

    cdef void detach(self) noexcept:
        """No callback is called any more. In O(1), and no Python code runs: a tick stops the timers and watchers, and drops
        them. Any thread, with the GIL."""
        self.over = True
        if not is_empty(&self.running):
            append_all(&self.reactor.stopping, &self.running)
            self.reactor.wake()

    def start_timer(self, seconds, callback, *args):
        """Call `callback(*args)` once, after `seconds`, on the dispatcher's thread.

        `seconds`: a number, 0 or more. Never called early (libuv's own timers can be, after a callback that blocked), and
        late only by what the loop is busy with; with 0 in the next turn. A running timer is kept alive by the loop, and
        `callback` and `args` by the timer.

        Returns a `Timer`. Raises ValueError for seconds that are negative, not finite or beyond 100 years, TypeError for
        a callback that cannot be called, or is a method of a context or hold that gives back and takes another number of
        arguments, DispatcherClosed after close(), MqError on another thread than the dispatcher's. On a `Hold` also
        NotHeld, when it is over.
        """
        cdef double delay = as_seconds(seconds)
        cdef Timer timer = Timer.__new__(Timer)
        timer.lifetime = self
        timer.callback = callback
        timer.args = args
        self.check_start("start_timer()", callback, size_of(args))
        timer.start(delay)
        return timer

    def watch(self, fd, events, callback, *args):
        """Call `callback(watcher, events, *args)` whenever `fd` is ready, on the dispatcher's thread, until `stop()`.

        `fd`: an int, or an object with `fileno()`; libuv makes it non-blocking. `events`: READ, WRITE or both; the
        callback gets those that are ready. Level-triggered: called again while the fd stays ready. An error condition,
        such as a refused connection, makes all asked for events ready, so that the next read or write meets it. Several
        watchers may share one fd.

        Stop the watcher before you close the fd. When the fd was closed under a watcher, by any thread, the watcher is
        stopped, and called once more with events 0 and the OSError in `watcher.error` as soon as that shows: at the latest
        when the watcher is changed or the number is watched again.

        Returns a `Watcher`. Raises OSError for an fd that is not open (EBADF), that cannot be polled, such as a file
        (EPERM), or that asyncio polls already (EEXIST; on Linux asyncio may begin to poll it later, and both get the
        events); ValueError for other events; TypeError for a callback that cannot be called; and what `start_timer` raises
        for threads and closing.
        """
        cdef int number = PyObject_AsFileDescriptor(fd)
        cdef int wanted = as_events(events)
        cdef Watcher watcher = Watcher.__new__(Watcher)
        watcher.lifetime = self
        watcher.fd = number
        watcher.watch.owner = <PyObject *>watcher
        watcher.callback = callback
        watcher.args = args
        self.check_start("watch()", callback, 2 + size_of(args))
        cdef int failed = add_watch(&self.reactor.state, &watcher.watch, number, wanted)
        if failed < 0:
            raise cannot_watch(number, -failed)
        append(&self.running, &watcher.sibling)
        Py_INCREF(watcher)  # the loop keeps it as long as it is active
        return watcher


cdef inline Py_ssize_t wanted_by(object callback, Py_ssize_t count) noexcept:
    """How many arguments it takes, where it is a method of a lifetime that gives back; else `count`."""
    cdef PyObject *owner = PyCFunction_GET_SELF(callback) if PyCFunction_Check(callback) else NULL
    if owner == NULL or not is_a(<object>owner, <PyObject *>Lifetime):
        return count
    return (<Lifetime>owner).arguments_of(name_of(callback), count)


cdef int refuse_count(str what, object callback, Py_ssize_t count) except -1:
    """Here there is a line to look at, which there is not when the callback is called."""
    cdef Py_ssize_t wanted = wanted_by(callback, count)
    takes = "no arguments" if wanted == 0 else f"{wanted} argument{'s' if wanted > 1 else ''}"
    gets = "the watcher, the events and what follows the callback" if what == "watch()" else "what follows the callback"
    raise TypeError(f"{what}: {callback.__qualname__}() takes {takes}, and would get {count}: {gets}")


cdef double as_seconds(object seconds) except -1:
    cdef double delay
    try:
        delay = seconds
    except OverflowError:
        delay = float("inf")
    except TypeError:
        raise TypeError(
            f"a timer needs seconds, a number, not {seconds!r}; write start_timer(seconds, callback, *arguments)") from None
    if not 0 <= delay <= LONGEST:  # also refuses NaN
        raise ValueError(f"a timer needs seconds that are finite, not negative and no more than 100 years, not {seconds!r}")
    return delay


cdef int as_events(object events) except -1:
    """As a C int first: a subclass of int may compare as it likes."""
    cdef int overflow = 0
    cdef long value
    if not PyLong_Check(events):
        raise TypeError(f"events must be READ, WRITE or READ | WRITE, not {events!r}")
    value = PyLong_AsLongAndOverflow(events, &overflow)
    if overflow:
        raise ValueError("events must be READ, WRITE or READ | WRITE, not a number so large; stop() ends a watcher")
    if not C_READ <= value <= C_READ | C_WRITE:
        raise ValueError(f"events must be READ, WRITE or READ | WRITE, not {value}; stop() ends a watcher")
    return <int>value


cdef class WatchHandle(Runnable):

    cdef int check_lifetime(self, str what) except -1:
        if self.lifetime is None:
            raise MqError(f"{what}: the garbage collector has let go of this already")
        return self.lifetime.check_open(what)

    cdef inline void begin_call(self) noexcept:
        """Its callback has the loop until the next one is called, or the phase ends."""
        self.lifetime.caller.calls += 1
        set_calling(&self.lifetime.reactor.state, self.lifetime.caller)

    cdef void returned(self, PyObject *result) noexcept:
        """The callback returned, or with NULL raised."""
        cdef PyObject *error
        if result != NULL and PyCoro_CheckExact(result) and Py_REFCNT(<object>result) == 1:
            (<refuse_function>refuse_coroutine)(result)
            result = NULL
        if result == NULL:
            error = take_error()
            self.lifetime.callback_raised(<object>error)
            Py_DECREF(<object>error)
        else:
            Py_DECREF(<object>result)

    def stop(self):
        """Stop it, also from inside its own callback. Returns whether it was active; once stopped, or after close(), this
        does nothing. Raises MqError on another thread than the dispatcher's."""
        if self.lifetime is None:  # the garbage collector has let go of it
            return False
        if not self.lifetime.reactor.closed:
            self.lifetime.reactor.check("stop()")
        cdef bint ended = self.lifetime.over
        return self.halt() and not ended


cdef int refuse_coroutine(PyObject *result) except -1:
    """A callback returned a coroutine that nobody has, and Python would say so at a line that is not the plugin's: raise what
    is. Steals the reference."""
    coroutine = <object>result
    Py_DECREF(coroutine)
    code = coroutine.cr_code
    name, file, line = coroutine.__qualname__, code.co_filename, code.co_firstlineno
    coroutine.close()
    raise TypeError(
        f"{name}() in {file}:{line} is a coroutine function, and timers and watchers call plain ones: nobody awaits it, so it "
        f"never ran; define it without async, or start it by asyncio's create_task() in a plain one")


# ----------------------------------------------------------------------------------------------------------------- Timer

@cython.final
cdef class Timer(WatchHandle):
    """A one-shot timer, made by `context.start_timer` or `hold.start_timer`.

    May be kept as long as you like; outlives its dispatcher safely. Methods belong to the dispatcher's thread.
    """

    # A running timer is kept alive by the loop, so the garbage collector could never free it: it need not look at it.

    cdef void start(self, double seconds) noexcept:
        if not is_linked(&self.node.link):
            self.node.owner = <PyObject *>self
            Py_INCREF(self)
            PyObject_GC_UnTrack(self)
            append(&self.lifetime.running, &self.sibling)
        self.lifetime.reactor.start_node(&self.node, <uint64_t>(seconds * 1e9))

    cdef bint halt(self) noexcept:
        if not is_linked(&self.node.link):
            return False
        self.lifetime.reactor.stop_node(&self.node)
        unlink(&self.sibling)
        if Py_REFCNT(self) > 1:
            PyObject_GC_Track(self)
        Py_DECREF(self)  # the caller has a reference
        return True

    cdef void run(self) noexcept:
        self.halt()
        if not self.lifetime.over:
            self.begin_call()
            self.returned(PyObject_Call(<PyObject *>self.callback, <PyObject *>self.args, NULL))

    def reset(self, seconds):
        """Start again, to fire `seconds` from now: before it fired, in its callback or afterwards.

        Raises ValueError, DispatcherClosed, MqError and NotHeld as `start_timer` does.
        """
        cdef double delay = as_seconds(seconds)
        self.check_lifetime("reset()")
        self.start(delay)

    def __repr__(self):
        cdef bint running = is_linked(&self.node.link) and not self.lifetime.over
        return f"<mqcore.Timer {'running' if running else 'stopped'}, calls {self.callback!r}>"


# --------------------------------------------------------------------------------------------------------------- Watcher

@cython.final
cdef class Watcher(WatchHandle):
    """Watches an fd; made by `context.watch` or `hold.watch`. Methods belong to the dispatcher's thread.

    `fd`: int. `error`: None, or the OSError that ended it: EBADF because the fd had been closed, elsewhere than on
    Linux also EEXIST, because asyncio took it.
    """

    cdef bint halt(self) noexcept:
        if not remove_watch(&self.lifetime.reactor.state, &self.watch):
            return False
        unlink(&self.sibling)
        Py_DECREF(self)  # the caller has a reference
        return True

    cdef void run(self) noexcept:
        # One that was called before it may have changed what it waits for.
        cdef int events = self.watch.came & self.watch.wanted
        cdef int lost = lost_for(&self.watch)
        cdef PyObject *error
        self.watch.came = 0
        if lost:
            self.halt()
            if (<lose_function>lost_watcher)(self, lost) < 0:
                error = take_error()
                self.lifetime.callback_raised(<object>error)
                Py_DECREF(<object>error)
            self.call(0)
        elif events:
            self.call(events)

    cdef void call(self, int events) noexcept:
        cdef PyObject *space[3 + FEW_ARGUMENTS]
        cdef PyObject *args = <PyObject *>self.args
        cdef Py_ssize_t count = tuple_size(args)
        cdef Py_ssize_t index
        if self.lifetime.over:
            return
        self.begin_call()
        if count > FEW_ARGUMENTS:
            self.returned(call_with_many(self, events))
            return
        space[1] = <PyObject *>self
        space[2] = tuple_item(<PyObject *>NUMBERS, events)
        for index in range(count):
            space[3 + index] = tuple_item(args, index)
        self.returned(call_function(<PyObject *>self.callback, space + 1, 2 + count | ROOM))

    @property
    def events(self):
        """What it watches for: READ, WRITE or both. May be set while it watches; raises ValueError for anything else,
        OSError (EBADF) when the fd was closed, and MqError, DispatcherClosed or NotHeld as `watch` does. Setting it on a
        stopped watcher is an MqError."""
        return self.watch.wanted

    @events.setter
    def events(self, events):
        cdef int wanted = as_events(events)
        self.check_lifetime("setting events")
        if not is_active(&self.watch):
            raise MqError(f"the watcher of fd {self.fd} is stopped; watch() makes a new one")
        cdef int failed = change_watch(&self.watch, wanted)
        if failed < 0:
            raise lost_while_watched(self.fd, -failed)

    def __repr__(self):
        return f"<mqcore.Watcher fd={self.fd} {'active' if is_active(&self.watch) else 'stopped'}>"


cdef PyObject *call_with_many(Watcher watcher, int events) noexcept:
    """Call the callback, with a tuple of its own: the result, or NULL when it raised."""
    cdef PyObject *args = PyTuple_New(2 + tuple_size(<PyObject *>watcher.args))
    cdef PyObject *result
    cdef Py_ssize_t index
    if args == NULL:
        return NULL
    Py_INCREF(watcher)
    PyTuple_SET_ITEM(args, 0, watcher)
    set_from(args, 1, tuple_item(<PyObject *>NUMBERS, events))
    for index in range(tuple_size(<PyObject *>watcher.args)):
        set_from(args, 2 + index, tuple_item(<PyObject *>watcher.args, index))
    result = PyObject_Call(<PyObject *>watcher.callback, args, NULL)
    Py_DECREF(<object>args)
    return result


cdef void set_from(PyObject *args, Py_ssize_t index, PyObject *value) noexcept:
    Py_INCREF(<object>value)
    PyTuple_SET_ITEM(args, index, <object>value)


cdef int lost_watcher(Watcher watcher, int code) except -1:
    watcher.error = lost_while_watched(watcher.fd, code)
    return 0


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
    if code == errno.EINVAL:
        return OSError(code, f"fd {fd} cannot be watched: the system refuses it, as it does when 500 duplicates of one file "
                             f"are watched already")
    return OSError(code, f"fd {fd} cannot be watched: {os.strerror(code)}")


seal_base(Lifetime)
seal_base(WatchHandle)
seal(Timer)
seal(Watcher)
