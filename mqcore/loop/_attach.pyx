"""A reactor's beginning and its end: it is attached to a loop, closed, and of no use in the child of a fork."""

import asyncio
import os

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free

from ._libuv cimport UV_ASYNC, UV_IDLE, UV_PREPARE, UV_TIMER, Library, LibUV, library_of, pointer_of, uv_handle_t, uv_loop_t
from ._list cimport Link, List, after, append, first, init_list, unlink
from ._poll cimport any_watch, close_polls, open_polls
from ._reactor cimport PyThread_get_thread_ident, Reactor, Task, halt_one, take_posted
from ._state cimport NS_PER_MS, LoopState, Watch, close_handle, header_of, new_handle, opened, request_nogil_tick, uv_of
from ._wheel cimport Node, any_node

from ..errors import MqError

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    /* Such an object has two counts: one of the references of the thread that made it, and one of all others'. When another
       thread drops the last one, the object waits for that thread. Without an owner there is one count for all. */
    static void mqcore_disown(PyObject *object)
    {
        Py_ssize_t count = Py_REFCNT(object);
        object->ob_tid = 0;
        Py_SET_REFCNT(object, count);
    }
    #else
    #define mqcore_disown(object) ((void)0)
    #endif
    """
    void disown "mqcore_disown"(object) noexcept

cdef List reactors  # those that are open; with the GIL
init_list(&reactors)


# ---------------------------------------------------------------------------------------------------------------- Attach

cdef int attach(Reactor reactor, object loop, object dispatcher) except -1:
    """Borrow `loop`. The reactor keeps itself, and its `dispatcher`, alive until close() and the close callbacks. What raises
    leaves nothing open."""
    cdef Library library = library_of(loop)
    cdef uv_loop_t *pointer = pointer_of(loop)
    if library.owner == "uvloop" and loop.is_running() and asyncio._get_running_loop() is not loop:
        raise MqError("the loop runs in another thread: make the dispatcher there, such as in a callback of the loop")
    if reactor.is_open or reactor.closed:
        raise MqError("the dispatcher has been initialised already")
    reactor.library = library
    reactor.loop = loop
    reactor.state.uv = &library.table
    reactor.state.pointer = pointer
    reactor.state.all_closed = all_closed
    reactor.state.sees_double_polls = library.owner != "pyuv"
    try:
        open_handles(reactor, dispatcher)
    except BaseException:
        free(reactor.waker)
        free(reactor.state.idle)
        free(reactor.state.prepare)
        free(reactor.state.alarm)
        reactor.loop = None
        raise
    return 0


cdef int open_handles(Reactor reactor, object dispatcher) except -1:
    """Make the handles. What can fail comes first; from there on no Python code runs."""
    cdef LibUV *uv = reactor.state.uv
    cdef int _each
    reactor.waker = new_handle(&reactor.state, UV_ASYNC)
    reactor.state.idle = new_handle(&reactor.state, UV_IDLE)
    reactor.state.prepare = new_handle(&reactor.state, UV_PREPARE)
    reactor.state.alarm = new_handle(&reactor.state, UV_TIMER)
    if reactor.waker == NULL or reactor.state.idle == NULL or reactor.state.prepare == NULL or reactor.state.alarm == NULL:
        raise MemoryError()
    cdef int failed = uv.async_init(reactor.state.pointer, uv_of(reactor.waker), on_async)
    if failed < 0:  # it needs an fd
        raise OSError(-failed, f"libuv cannot make an async handle: {os.strerror(-failed)}")
    uv.idle_init(reactor.state.pointer, uv_of(reactor.state.idle))  # these cannot fail
    uv.prepare_init(reactor.state.pointer, uv_of(reactor.state.prepare))
    uv.timer_init(reactor.state.pointer, uv_of(reactor.state.alarm))
    for _each in range(4):
        opened(&reactor.state)
    # Unref'd: only held messages and running timers keep the loop alive, and these do it by the waker.
    uv.unref(uv_of(reactor.waker))
    uv.unref(uv_of(reactor.state.prepare))
    uv.unref(uv_of(reactor.state.alarm))
    open_polls(&reactor.state)
    reactor.wheel.now = uv.hrtime() // NS_PER_MS
    reactor.dispatcher = dispatcher
    reactor.is_open = True
    reactor.thread = PyThread_get_thread_ident()
    append(&reactors, &reactor.neighbours)
    Py_INCREF(reactor)
    reactor.wake()  # the first tick learns which thread runs the loop
    return 0


cdef void on_async(uv_handle_t *uv_handle) noexcept nogil:
    request_nogil_tick(header_of(uv_handle).loop)


# ----------------------------------------------------------------------------------------------------------------- Close

cdef void stop_all(Reactor reactor) noexcept:
    """Refuse everything from now on; stop all timers and watchers, and tell what was posted."""
    cdef Node *node
    cdef Watch *watch
    cdef PyObject *task
    reactor.closed = True
    reactor.thread = 0
    if reactor.forked or not reactor.is_open:
        return
    node = any_node(&reactor.wheel)
    while node != NULL:
        halt_one(node.owner)
        node = any_node(&reactor.wheel)
    watch = any_watch(&reactor.state)
    while watch != NULL:
        halt_one(watch.owner)
        watch = any_watch(&reactor.state)
    while reactor.posted_count > 0:
        task = take_posted(reactor)
        (<Task>task).loop_closes()
        Py_DECREF(<Task>task)


cdef void close(Reactor reactor) noexcept:
    """Stop all, and close the handles. Their memory goes with their close callbacks. More than once is fine."""
    stop_all(reactor)
    if not reactor.is_open:
        return
    reactor.is_open = False
    unlink(&reactor.neighbours)
    if reactor.forked:
        return
    close_polls(&reactor.state)
    close_handle(reactor.waker)
    close_handle(reactor.state.idle)
    close_handle(reactor.state.prepare)
    close_handle(reactor.state.alarm)


cdef void all_closed(LoopState *state) noexcept with gil:
    """The last close callback: libuv knows nothing of the reactor any more."""
    cdef Reactor reactor = <Reactor>state.owner
    _dispatcher = reactor.dispatcher  # dropped when this returns
    reactor.dispatcher = None
    Py_DECREF(reactor)  # the reference that attach() took


def end_on_any_thread(value):
    """Have a new object end there and then on whichever thread drops the last reference, on every build of Python. On the
    thread that makes it; nobody else may have it yet."""
    disown(value)


# ------------------------------------------------------------------------------------------------------------------ Fork

def after_fork_in_child():
    # The child shares the parent's epoll: whatever it told libuv, the parent would feel.
    cdef Link *link = first(&reactors)
    cdef Reactor reactor
    while link != NULL:
        reactor = reactor_at(link)
        reactor.thread = 0
        reactor.forked = True
        reactor.state.forked = True
        link = after(&reactors, link)


cdef Reactor reactor_at(Link *neighbours):
    return <Reactor><PyObject *>(<char *>neighbours - <size_t>&(<Reactor><PyObject *>NULL).neighbours)


os.register_at_fork(after_in_child=after_fork_in_child)
