"""Streams: `hook.stream(messages)` runs a source of messages through a hook, and is an asynchronous iterator of the outcomes.

Whoever iterates has a `Stream`; behind it stands a `Flow` (see _flow), which has all that goes on: so when the last reference
to the Stream goes, what is in flight can be cancelled, whoever else knows the flow. How messages are read stands in _reading.

Where nobody holds a message, its outcome is what the awaitable, a `Next`, gives without waiting.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from ._flow cimport Flow
from ._hook cimport Hook
from ._message cimport Message
from ._reading cimport ONE, OVER, TURN, check_thread, end, flow_of, poll, wait
from .loop._seal cimport seal

cdef extern from *:
    """
    /* Steals both references, unless it fails. */
    static PyObject *mqcore_pair(PyObject *message, PyObject *outcome)
    {
        PyObject *pair = PyTuple_New(2);
        if (pair != NULL) {
            PyTuple_SET_ITEM(pair, 0, message);
            PyTuple_SET_ITEM(pair, 1, outcome);
        }
        return pair;
    }

    /* Raises StopIteration with this value, which may be a tuple; with another exception it fails. */
    static int mqcore_stop_with(PyObject *value)
    {
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
        if (stop == NULL)
            return 0;
    #if PY_VERSION_HEX >= 0x030C0000
        PyErr_SetRaisedException(stop);
    #else
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    #endif
        return 1;
    }

    /* What is awaited gets its result by these, without an exception where CPython can do that. */
    typedef int (*mqcore_send)(PyObject *, PyObject *, PyObject **);

    static void mqcore_set_slots(PyObject *type, mqcore_send send, PyObject *(*next)(PyObject *))
    {
        ((PyTypeObject *)type)->tp_as_async->am_send = (sendfunc)send;
        ((PyTypeObject *)type)->tp_iternext = next;
    }
    """
    PyObject *pair_of "mqcore_pair"(PyObject *message, PyObject *outcome) noexcept
    bint stop_with "mqcore_stop_with"(PyObject *value) noexcept
    void set_slots "mqcore_set_slots"(object type, int (*send)(PyObject *, PyObject *, PyObject **) noexcept,
                                      PyObject *(*next)(PyObject *) noexcept) noexcept

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *PyExc_StopAsyncIteration
    PyObject *PyExc_RuntimeError
    int PyIter_Send(object, PyObject *, PyObject **) noexcept
    PyObject *item_of "PyTuple_GET_ITEM"(PyObject *, Py_ssize_t) noexcept
    void PyErr_SetNone(PyObject *) noexcept
    void PyErr_SetString(PyObject *, const char *) noexcept
    void raise_object "PyErr_SetObject"(object type, object value) noexcept

cdef enum Sent:
    # PySendResult
    RETURNED = 0
    RAISED = -1
    YIELDED = 1

cdef enum Awaited:
    FRESH = 0
    PENDING = 1
    FINISHED = 2


# ------------------------------------------------------------------------------------------------------------------ Next

@cython.final
@cython.no_gc_clear
@cython.freelist(8)
cdef class Next:

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """Go on: what is awaited, to be given to the task; or StopIteration with a message and its outcome."""
        cdef PyObject *result = NULL
        cdef int sent = send_to(<PyObject *>self, <PyObject *>value, &result)
        if sent == RETURNED:
            stop_or_keep(self.stream.flow, result)
        if sent != YIELDED:
            raise_current()
        given = <object>result
        Py_DECREF(given)
        return given

    def throw(self, *error):
        """Raise this where the stream waits. A CancelledError, or any other error, closes the stream."""
        if not 0 < len(error) < 4:
            raise TypeError("throw() takes an exception, or as before its type, value and traceback")
        if self.running:
            raise RuntimeError("anext(): already executing")
        if self.inner is not None:
            self.running = True
            try:
                return self.inner.throw(*error)
            except BaseException:
                finish(self)
                raise
            finally:
                self.running = False
        finish(self)
        if len(error) > 1 and error[1] is not None:
            raise error[1]
        raise error[0]

    def close(self):
        """It is not awaited any more. Where it was, that closes the stream, in a tick."""
        if self.running:
            raise RuntimeError("anext(): already executing")
        inner, self.inner = self.inner, None
        finish(self)
        if inner is not None:
            inner.close()

    def __dealloc__(self):
        finish(self)


cdef int raise_current() except -1:
    return -1


cdef void finish(Next self) noexcept:
    if self.state == PENDING and self.stream.flow.pending == <PyObject *>self:
        self.stream.flow.pending = NULL
    self.state = FINISHED


cdef int begin_next(Next self, Flow flow) except -1:
    check_thread(flow)
    if self.state == FINISHED:
        raise RuntimeError("cannot reuse already awaited __anext__()")
    if flow.pending != NULL and flow.pending != <PyObject *>self:
        raise RuntimeError("anext(): the stream is being iterated already")
    self.state = PENDING
    flow.pending = <PyObject *>self
    return 0


cdef int start_waiting(Next self, Flow flow, bint turn) except -1:
    self.inner = wait(flow, turn)
    return 0


cdef int send_to(PyObject *awaited, PyObject *value, PyObject **result) noexcept:
    """Sent: go on with it, as PyIter_Send does."""
    cdef Next self = <Next>awaited
    cdef Flow flow = self.stream.flow
    cdef int sent
    if self.running:
        PyErr_SetString(PyExc_RuntimeError, b"anext(): already executing")
        return RAISED
    if self.inner is None and (<int (*)(Next, Flow) noexcept>begin_next)(self, flow) < 0:
        return RAISED
    self.running = True
    sent = go_on(self, flow, value, result)
    self.running = False
    if sent != YIELDED:
        finish(self)
    return sent


cdef int go_on(Next self, Flow flow, PyObject *value, PyObject **result) noexcept:
    cdef PyObject *message = NULL
    cdef PyObject *outcome = NULL
    cdef int found, sent
    while True:
        if self.inner is not None:
            sent = PyIter_Send(self.inner, value, result)
            if sent == YIELDED:
                return YIELDED
            self.inner = None
            if sent == RAISED:
                return RAISED
            Py_DECREF(<object>result[0])
            result[0] = NULL
            value = Py_None
        found = poll(flow, &message, &outcome)
        if found == ONE:
            result[0] = pair_of(message, outcome)
            if result[0] != NULL:
                return RETURNED
            keep_back(flow, message, outcome)
            Py_DECREF(<object>message)
            Py_DECREF(<object>outcome)
            return RAISED
        if found == OVER:
            raise_end(flow)
            return RAISED
        if (<int (*)(Next, Flow, bint) noexcept>start_waiting)(self, flow, found == TURN) < 0:
            return RAISED


cdef void keep_back(Flow flow, PyObject *message, PyObject *outcome) noexcept:
    """There was no memory to yield it: it is the first that is yielded next time."""
    if flow.spare is not None and not flow.closed:
        flow.keep(<Message>message, <object>outcome, True)


cdef void raise_end(Flow flow) noexcept:
    """There is no more: the source's error, or the end."""
    error, flow.error = flow.error, None
    if error is None:
        PyErr_SetNone(PyExc_StopAsyncIteration)
    else:
        raise_object(<object>(<PyObject *>error).ob_type, error)


cdef void stop_or_keep(Flow flow, PyObject *pair) noexcept:
    """Raise StopIteration with what is yielded. Steals the reference."""
    if not stop_with(pair):
        keep_back(flow, item_of(pair, 0), item_of(pair, 1))
    Py_DECREF(<object>pair)


cdef PyObject *next_of(PyObject *awaited) noexcept:
    """The same by `tp_iternext`: NULL, with StopIteration, for what it returns."""
    cdef PyObject *result = NULL
    cdef int sent = send_to(awaited, Py_None, &result)
    if sent == RETURNED:
        stop_or_keep((<Next>awaited).stream.flow, result)
        return NULL
    return result


# ---------------------------------------------------------------------------------------------------------------- Stream

@cython.final
@cython.no_gc_clear
cdef class Stream:
    """What `hook.stream(messages)` gives: an asynchronous iterator of tuples of a message and its outcome.

    To be iterated once, by one task at a time, on the dispatcher's thread. `await stream.aclose()` cancels what is in flight
    and closes the source; so does the cancellation of whoever waits for the next, and the end of the last reference to it.
    """

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Next awaitable = Next.__new__(Next)
        awaitable.stream = self
        return awaitable

    def aclose(self):
        """To be awaited: cancel what is in flight, drop what was not yielded yet and close the source. What waits for the next
        one is told that there is none. More than once is fine."""
        return end(self.flow)

    def __del__(self):
        # Any thread, inside any allocation: only queue.
        cdef Flow flow = self.flow
        if flow is not None and (flow.in_flight > 0 or flow.source is not None) and not flow.left:
            flow.leave()


def new_stream(Hook hook not None, messages, tuple args not None, max_in_flight, ordered):
    """`hook.stream`, which has checked the call."""
    cdef Stream stream
    cdef Flow flow = flow_of(hook, messages, args, max_in_flight, ordered)
    stream = Stream.__new__(Stream)
    stream.flow = flow
    return stream


set_slots(Next, send_to, next_of)
seal(Next)
seal(Stream)
