"""What a stream has in flight: the messages that were read and not yielded yet.

One that is held has a `Place`, which is the `done` of its step; the flow refers to the message weakly, and the place brings it
when the step has ended. How messages are read stands in _reading.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from ._dispatch cimport begin, cancel_step
from ._hook cimport Hook, in_step, variables_for
from ._message cimport IDLE, RUNNING, Message, move, report_raised
from .loop._call cimport ends_program, take_error
from .loop._list cimport Link, List, append, first, init_list, is_linked, unlink
from .loop._reactor cimport Caller, Portion, Task, has_budget, start_portion
from .loop._seal cimport seal
from .loop._state cimport set_caller

from .errors import MqError

cdef extern from *:
    """
    /* A new reference, or NULL; raises nothing. */
    static PyObject *mqcore_referent(PyObject *reference)
    {
        PyObject *object;
    #if PY_VERSION_HEX >= 0x030D0000
        if (PyWeakref_GetRef(reference, &object) < 0)
            PyErr_Clear();
        return object;
    #else
        object = PyWeakref_GetObject(reference);
        if (object == Py_None)
            return NULL;
        return Py_NewRef(object);
    #endif
    }
    """
    PyObject *referent_of "mqcore_referent"(object reference) noexcept

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *PyWeakref_NewRef(object, PyObject *) noexcept
    void PyErr_Clear() noexcept


# ---------------------------------------------------------------------------------------------------------------- Places

@cython.final
@cython.no_gc_clear
@cython.freelist(1024)
cdef class Place:

    def __call__(self, Message message not None, outcome):
        cdef Flow flow = self.flow
        if not self.waiting or flow is None:
            return
        self.waiting = False
        self.flow = None
        self.referent = None
        if flow.closed:
            flow.remove(self)
            return
        self.message = message
        self.outcome = outcome
        Py_INCREF(self)  # the list's
        if not flow.ordered:
            unlink(&self.link)
            append(&flow.ended, &self.link)
        flow.wake()

    def __dealloc__(self):
        # Where there was no memory to tell of a step's end, it comes here.
        if self.waiting and self.flow is not None and is_linked(&self.link):
            self.flow.remove(self)
            self.flow.hook.runner.reactor.post(self.flow)


cdef PyObject *place_at(Link *link) noexcept:
    return <PyObject *>(<char *>link - <size_t>&(<Place><PyObject *>NULL).link)


# ------------------------------------------------------------------------------------------------------------------ Flow

@cython.final
@cython.no_gc_clear
cdef class Flow(Task):

    def __cinit__(self):
        init_list(&self.flight)
        init_list(&self.ended)

    def __dealloc__(self):
        # No step goes on: its place would refer to this.
        drop_all(self, &self.ended)
        drop_all(self, &self.flight)

    cdef PyObject *run(self, object candidate) except? NULL:
        """Run a message of the source: its outcome, borrowed, or None when it is in flight now."""
        cdef Hook hook = self.hook
        cdef Place place = self.spare
        cdef Message message
        cdef PyObject *outcome
        cdef Caller *before
        if not isinstance(candidate, Message):
            raise TypeError(f"{hook.name}: stream() needs messages, not {candidate!r}")
        message = candidate
        if place is None:
            place = Place.__new__(Place)
        variables = variables_for(hook.chain)
        hook.runner.reactor.check(hook.name)  # now: by memory that is made the dispatcher may be closed
        if message.state != IDLE:
            raise MqError(f"{hook.name}: a message of stream(): {in_step(message)}")
        chain = hook.chain
        self.spare = None
        place.flow = self
        place.running = <PyObject *>message
        place.waiting = True
        append(&self.flight, &place.link)
        self.in_flight += 1
        move(&hook.holds.lists, message, IDLE, RUNNING)
        before = hook.runner.calling
        outcome = begin(hook.runner, chain, message, self.args, place, variables)
        set_caller(&hook.runner.calling, before)
        place.running = NULL
        if outcome != Py_None:
            place.waiting = False
            place.flow = None
            self.remove(place)
            self.spare = place
        elif place.waiting:
            refer_weakly(place, message)
            if self.closed and place.waiting:  # closed while its hook was called, or memory was made
                cancel_step(hook.runner, message)
        return outcome

    cdef void keep(self, Message message, object outcome, bint first_of_all) noexcept:
        """Keep an outcome that cannot be yielded now, by the spare place."""
        cdef Place place = self.spare
        cdef List *list = &self.flight if self.ordered else &self.ended
        self.spare = None
        place.message = message
        place.outcome = outcome
        Py_INCREF(place)  # the list's
        if first_of_all and first(list) != NULL:
            list = <List *>first(list)  # what is appended there stands before it: a list is a ring
        append(list, &place.link)
        self.in_flight += 1

    cdef PyObject *first_ended(self) noexcept:
        """The next place to yield, borrowed; NULL when there is none."""
        cdef Link *link = first(&self.flight if self.ordered else &self.ended)
        cdef PyObject *place
        if link == NULL:
            return NULL
        place = place_at(link)
        return NULL if (<Place>place).waiting else place

    cdef void take_out(self, Place place, PyObject **message, PyObject **outcome) noexcept:
        """What it has, as new references. The place is the next spare one."""
        cdef Py_ssize_t free
        self.remove(place)
        Py_INCREF(place.message)
        message[0] = <PyObject *>place.message
        Py_INCREF(place.outcome)
        outcome[0] = <PyObject *>place.outcome
        place.message = None
        place.outcome = None
        if self.spare is None:
            self.spare = place
        Py_DECREF(place)  # the list's
        free = self.most - self.in_flight
        if self.room is not None and (4 * free >= self.most or self.first_ended() == NULL):  # not for each message anew
            self.make_room()

    cdef void remove(self, Place place) noexcept:
        if is_linked(&place.link):
            unlink(&place.link)
            self.in_flight -= 1

    cdef void wake(self) noexcept:
        """There may be something to yield, or nothing more to wait for, or room."""
        cdef bint over = self.closed or self.source is None and self.in_flight == 0
        if self.waiter is not None and (over or self.first_ended() != NULL):
            waiter, self.waiter = self.waiter, None
            if not resolve(waiter):
                self.waiter = waiter
                self.hook.runner.reactor.post(self)  # to be tried again
        if self.room is not None and (self.closed or self.in_flight < self.most and self.first_ended() == NULL):
            self.make_room()

    cdef void make_room(self) noexcept:
        room, self.room = self.room, None
        if not resolve(room):
            self.room = room
            self.hook.runner.reactor.post(self)

    cdef void source_failed(self, object error) noexcept:
        """The source raised, or gave what cannot be run: told when nothing is in flight any more."""
        cdef PyObject *worse
        if (<int (*)(Flow, object) noexcept>note_failure)(self, error) < 0:
            worse = take_error()
            self.error = <object>worse
            Py_DECREF(<object>worse)
        error = self.error
        if ends_program(error):  # that does not wait
            close(self)
            while self.cancel_some():
                pass
            self.error = error

    cdef bint cancel_some(self) noexcept:
        """Cancel what is in flight, and drop what was to be yielded, for a while. Whether there is more."""
        cdef Portion portion = start_portion(self.hook.runner.reactor.state.uv)
        cdef Link *link
        cdef PyObject *message
        cdef Place place = None
        while has_budget(&portion):
            place = None  # the last one, before another is looked up: anybody's code may run
            link = first(&self.flight)
            if link == NULL:
                link = first(&self.ended)
            if link == NULL:
                return False
            place = <Place>place_at(link)
            self.remove(place)
            if not place.waiting:
                Py_DECREF(place)  # the list's
                continue
            if place.running != NULL:
                message = place.running
                Py_INCREF(<object>message)
            else:
                message = NULL if place.referent is None else referent_of(place.referent)
            if message != NULL:
                cancel_step(self.hook.runner, <Message>message)
                Py_DECREF(<object>message)
        return True

    cdef void leave(self) noexcept:
        """Nobody iterates any more: close, in a tick. Any thread."""
        self.left = True
        self.hook.runner.reactor.post(self)

    cdef void run_posted(self) noexcept:
        if not self.left:
            self.wake()
            return
        close(self)
        if self.cancel_some():
            self.hook.runner.reactor.post(self)
        elif (<int (*)(Flow) noexcept>close_left)(self) < 0:
            report_raised(self.hook.runner.reactor, "the source of a stream that nobody iterates any more")

    cdef void loop_closes(self) noexcept:
        # The dispatcher has ended all steps. The source is dropped; whoever reads it ends by that.
        if self.reader is not None and (<int (*)(Flow) noexcept>cancel_reader_soon)(self) < 0:
            report_raised(self.hook.runner.reactor, "the source of a stream whose dispatcher is closed")


cdef Flow new_flow(Hook hook, tuple args, Py_ssize_t most, bint ordered):
    """Without a source yet."""
    cdef Flow flow = Flow.__new__(Flow)
    flow.hook = hook
    flow.args = args
    flow.most = most
    flow.ordered = ordered
    flow.portion = start_portion(hook.runner.reactor.state.uv)
    return flow


cdef void drop_all(Flow flow, List *list) noexcept:
    cdef Link *link = first(list)
    while link != NULL:
        unlink(link)
        Py_DECREF(<Place>place_at(link))
        link = first(list)


cdef void refer_weakly(Place place, Message message) noexcept:
    cdef PyObject *reference = PyWeakref_NewRef(message, NULL)
    if reference == NULL:  # no memory: this one cannot be cancelled
        PyErr_Clear()
        return
    if place.waiting:
        place.referent = <object>reference
    Py_DECREF(<object>reference)


cdef void close(Flow flow) noexcept:
    """From now on nothing is yielded. What is in flight is for `cancel_some`."""
    flow.closed = True
    flow.error = None
    flow.wake()


cdef bint resolve(object future) noexcept:
    """Wake up whoever awaits it. False: there was no memory for that."""
    if (<int (*)(object) noexcept>set_result)(future) < 0:
        Py_DECREF(<object>take_error())
        return False
    return True


cdef int set_result(object future) except -1:
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(None)
    return 0


cdef int note_failure(Flow flow, object error) except -1:
    flow.error = error
    flow.reading = False
    source, flow.source = flow.source, None
    if isinstance(error, (StopIteration, StopAsyncIteration)):  # which would end something else
        flow.error = RuntimeError(f"the source of a stream raised {type(error).__name__}")
        flow.error.__cause__ = error
    if source is not None and not flow.asynchronous:
        close_source(source)
    return 0


cdef int close_source(object source) except -1:
    """A generator, or whatever else has that method."""
    close = getattr(source, "close", None)
    if close is not None:
        close()
    return 0


cdef int close_left(Flow flow) except -1:
    if flow.reader is not None:
        cancel_reader(flow)
    elif not flow.asynchronous and not flow.reading and flow.source is not None:
        source, flow.source = flow.source, None
        close_source(source)
    return 0


cdef int cancel_reader(Flow flow) except -1:
    """It closes the source. Once: a source that is just being closed may wait for something."""
    if not flow.reader_cancelled:
        flow.reader.cancel()
        flow.reader_cancelled = True
    return 0


cdef int cancel_reader_soon(Flow flow) except -1:
    loop = flow.reader.get_loop()
    if not flow.reader_cancelled and not loop.is_closed():
        loop.call_soon_threadsafe(flow.reader.cancel)
        flow.reader_cancelled = True
    return 0


seal(Place)
seal(Flow)
