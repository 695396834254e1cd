"""Who has control of a message: holds, giving back, deadlines, and what becomes of a message that nobody can give back.

A message carries its own place in its step, so that holding one allocates nothing. It is in one of four states:

    IDLE     in no step
    RUNNING  a hook of the step is being called          -> RUNNING (next plugin), HELD, QUEUED (early give-back), IDLE
    HELD     a plugin has it; in the lane of its timeout -> QUEUED (given back, abandoned), IDLE (deadline, cancel, close)
    QUEUED   given back; waits for a turn                -> RUNNING, IDLE

A give-back claims the message in the thread that makes it, and all that follows happens on the dispatcher's thread. Another
thread only changes HELD to GIVEN_BACK, with the GIL, and puts the message into a list, from which that thread takes it:
lanes, queue and books belong to the dispatcher's thread, which changes them without the GIL as long as it runs native plugins
(_bare). It has no Python plugin's message in hand then.
"""

import logging

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from .loop._atomic cimport fence, get, load_version, store_version
from .loop._libuv cimport UV_TIMER, uv_handle_t
from .loop._lifetime cimport Lifetime
from .loop._reactor cimport (
    RESUME_PHASE, Handle, PyThread_get_thread_ident, Reactor, arm, close_handle, header_of, new_handle, open_reactors, opened,
    request_tick, uv_of)

from .errors import HoldTimeout, NotHeld

cdef extern from "Python.h":
    void PyObject_GC_Track(object)
    void PyObject_GC_UnTrack(object)
    bint PyObject_GC_IsTracked(object)
    ctypedef struct TypeSlots "PyTypeObject":
        Py_ssize_t tp_basicsize
        Py_ssize_t tp_dictoffset
        void *tp_finalize

cdef uint64_t holds_begun = 0  # of dispatchers that are closed
cdef uint64_t holds_ended = 0


def holds():
    """How many holds this process has begun and ended: `(begun, ended)`. For tests; any thread."""
    cdef uint64_t begun = holds_begun
    cdef uint64_t ended = holds_ended
    cdef Reactor reactor
    for reactor in open_reactors():
        begun += (<Control>reactor.keeper).holds_begun
        ended += (<Control>reactor.keeper).holds_ended
    return begun, ended


# --------------------------------------------------------------------------------------------------------------- Message

cdef class Message:
    """What passes through the hooks. Subclass it freely; no method needs to be called by a subclass.

    A message is in one step at a time. While a plugin holds it the dispatcher refers to it weakly: drop the last
    reference and the step fails with `Abandoned`. (A subclass with a `__del__` of its own is referred to
    strongly.) Attributes may be read on any thread. A message cannot be copied or pickled: that is for a subclass to define.

    `error`: None, or the exception with which the last step failed; `run` resets it.
    `retries`: how often the current or last step was started again.
    """

    # The garbage collector looks at a message only once it stores something that can lead back to it, or when a subclass
    # gives it room for that.

    def __cinit__(self):
        if slots_of(self).tp_dictoffset == 0 and slots_of(self).tp_basicsize == MESSAGE.tp_basicsize:
            PyObject_GC_UnTrack(self)

    def __del__(self):
        # Any thread, inside any allocation: only queue. The queue's reference brings the message back to life.
        self.finalized = True
        if self.state == HELD:
            self.track()
            (<Control>(<Holder>self.entry.context).owner).release(self, TO_FAIL)

    cdef void track(self) noexcept:
        """Show the message to the garbage collector, and with it the live Hold that refers to it."""
        if not PyObject_GC_IsTracked(self):
            PyObject_GC_Track(self)
            if self.token != NULL and not PyObject_GC_IsTracked(<object>self.token):
                PyObject_GC_Track(<object>self.token)

    cdef void fail(self, object error) noexcept:
        self.error = error
        self.track()

    cdef void let_go(self) noexcept:
        """The hook returned without taking the message: a Hold that it asked for is over."""
        if self.token != NULL:
            token = <Token>self.token
            self.token = NULL
            token.expire()

    @property
    def data(self):
        """A dict for plugins, each under its own name: `message.data[context.plugin.name]`. Lives as long as the message."""
        if self.plugin_data is None:
            self.plugin_data = {}
            self.track()
        return self.plugin_data

    @property
    def holder(self):
        """The name of the plugin that holds the message now, or None."""
        return <str>self.entry.plugin if self.state == HELD else None


cdef TypeSlots *MESSAGE = <TypeSlots *><PyObject *>Message


cdef inline TypeSlots *slots_of(Message message) noexcept:
    return <TypeSlots *>(<PyObject *>message).ob_type


cdef bint finalizer_is_trusted(Message message) noexcept:
    """Whether the message's end will be seen. Python finalizes an object once, and a subclass may have its own way."""
    return not message.finalized and slots_of(message).tp_finalize == MESSAGE.tp_finalize


# ------------------------------------------------------------------------------------------------------ who gives it back

cdef class Tally:
    pass


cdef class Holder(Lifetime):

    cdef Tally tally_of(self, str hook):
        tally = self.tallies.get(hook)
        if tally is None:
            tally = Tally.__new__(Tally)
            self.tallies[hook] = tally
        return tally

    cdef int count_refused(self, str hook, str what) except -1:
        """Count a give-back that is to be refused, and refuse it where the dispatcher is the reason."""
        cdef Tally tally = self.tally_of(hook)
        tally.counters.refused += 1
        if self.reactor.thread == 0:  # closed, or in the child of a fork
            self.reactor.refuse(f"plugin {self.name} {what} a message")
        return 0


cdef class Token(Lifetime):

    cdef void expire(self) noexcept:
        """Stop being the live token: nothing can be given back with it, and what was started on it ends."""
        self.end()
        self.message = None


cdef bint has_control(Holder context, Message message) noexcept:
    """Whether this plugin may give the message back: it holds it, or its hook is being called, and it has not done so."""
    return (message.entry != NULL and message.entry.context == <PyObject *>context
            and message.verdict == UNDECIDED and (message.state == HELD or message.state == RUNNING)
            and context.reactor.thread != 0)


cdef int give_back(Holder context, Message message, int verdict, object error) except -1:
    """Rules 6 to 9: claim the message, here and now; the dispatcher goes on with it in a turn. Any thread."""
    if not has_control(context, message):
        return refuse_give_back(context, message, "gave back")
    count_given(message.entry.counters, verdict)
    if verdict == TO_FAIL:
        message.fail(error)
    if message.state == RUNNING or message.task is not None:
        message.verdict = verdict  # early: takes effect when the hook, or its coroutine, returns
    else:
        (<Control>context.owner).release(message, verdict)
    return 0


cdef void count_given(Counters *counters, int verdict) noexcept nogil:
    """Control was given back; with fail, that counts when the step ends."""
    if verdict == TO_CONTINUE:
        counters.continues += 1
    elif verdict == TO_COMPLETE:
        counters.completes += 1
    elif verdict == TO_RETRY:
        counters.retries += 1


cdef int refuse_give_back(Holder context, Message message, str what) except -1:
    cdef str hook = "" if message.last_hook == NULL else <str>message.last_hook
    context.count_refused(hook, what)
    if message.state == IDLE or message.entry == NULL:
        why = "its step is over" if hook else "it was in no step yet"
    elif (<Holder>message.entry.context).owner is not context.owner:
        why = "it is in a step of another dispatcher"
    elif message.entry.context != <PyObject *>context:
        plugin = <str>message.entry.plugin
        if message.state == HELD:
            why = f"plugin {plugin} holds it now"
        elif message.state == RUNNING:
            why = f"the hook of plugin {plugin} is being called"
        else:
            why = f"plugin {plugin} had it last, and gave it back"
    else:
        why = "it has been given back already"
    where = f" of {hook}" if hook else ""
    raise NotHeld(f"plugin {context.name} {what} a message{where} that it does not hold: {why}")


# --------------------------------------------------------------------------------------------------------------- Control

cdef void on_deadline(uv_handle_t *uv_handle) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    if handle.loop.uv.hrtime() < handle.due:
        arm(handle, on_deadline)
    else:
        handle.rung = True
        request_tick(handle.loop)


cdef bint drain(void *owner) noexcept:
    (<Control>owner).drain()
    return False


@cython.nonecheck(False)
cdef bint has_pending(void *owner) noexcept nogil:
    return (<Control>owner).books.held > 0


@cython.nonecheck(False)
cdef void stop_when_idle(void *owner) noexcept nogil:
    stop_deadline(<Control>owner)


@cython.nonecheck(False)
cdef void stop_deadline(Control control) noexcept nogil:
    if control.books.held == 0 and control.deadline.due:  # an idle dispatcher does not wake up
        control.deadline.due = 0
        control.reactor.state.uv.timer_stop(uv_of(control.deadline))  # cannot fail


@cython.no_gc_clear
cdef class Control:

    def __cinit__(self):
        self.reactor = Reactor.__new__(Reactor)

    cdef int open_control(self, object loop) except -1:
        self.reactor.set_phase(RESUME_PHASE, drain, <void *>self)
        self.reactor.set_idle(has_pending, stop_when_idle, <void *>self)
        self.reactor.open(loop, self)
        self.deadline = new_handle(&self.reactor.state, UV_TIMER)
        self.reactor.state.uv.timer_init(self.reactor.state.pointer, uv_of(self.deadline))  # cannot fail
        self.reactor.state.uv.unref(uv_of(self.deadline))  # what is held keeps the loop going, not its deadline
        opened(&self.reactor.state)
        return 0

    cdef int close_loop(self) except -1:
        global holds_begun, holds_ended
        holds_begun += self.holds_begun
        holds_ended += self.holds_ended
        if self.native != NULL:
            native_side.close(self)
        if not self.reactor.forked:
            close_handle(self.deadline)
        self.reactor.close()
        return 0

    def __dealloc__(self):
        cdef Lane *lane
        while self.lanes != NULL:
            lane = self.lanes
            self.lanes = lane.next
            free(lane)

    cdef Lane *lane_of(self, double seconds) except NULL:
        cdef uint64_t timeout = <uint64_t>(seconds * 1e9)
        cdef Lane *lane = self.lanes
        while lane != NULL:
            if lane.timeout == timeout:
                return lane
            lane = lane.next
        lane = <Lane *>calloc(1, sizeof(Lane))
        if lane == NULL:
            raise MemoryError()
        lane.timeout = timeout
        lane.next = self.lanes
        self.lanes = lane
        return lane

    cdef Books balance(self) noexcept:
        """The books as they are at one moment. Any thread, with the GIL."""
        cdef Books books
        cdef uint32_t version
        while True:
            version = load_version(&self.books_version)
            books = self.books
            fence()
            if version % 2 == 0 and version == load_version(&self.books_version):
                break
        books.held -= self.given_count
        books.running += self.given_count
        if self.passing:
            passed = get(&self.passed)
            books.entered += passed + 1
            books.continued += passed
            books.running += 1
        return books

    # -------------------------------------------------------------------------------------------------------------- holds

    cdef void begin_hold(self, Message message) noexcept:
        """The plugin at message.entry has the message now. RUNNING -> HELD."""
        if message.task is not None or message.native != NULL or not finalizer_is_trusted(message):
            message.strong = True
            Py_INCREF(message)
        self.enter_lane(message)

    # Without None checks, which need the GIL.

    @cython.nonecheck(False)
    cdef void enter_lane(self, Message message) noexcept nogil:
        cdef Lane *lane = message.entry.lane
        self.holds_begun += 1
        message.entry.counters.holds += 1
        count_held(self, 1)
        message.state = HELD
        message.since = self.reactor.state.uv.hrtime()
        message.following = NULL
        message.previous = lane.last
        if lane.last == NULL:
            lane.first = <PyObject *>message
            if lane.timeout:
                self.arm_deadline(message.since + lane.timeout)
        else:
            (<Message>lane.last).following = <PyObject *>message
        lane.last = <PyObject *>message
        self.reactor.set_busy(True)

    @cython.nonecheck(False)
    cdef void leave_lane(self, Message message, int verdict) noexcept nogil:
        cdef Lane *lane = message.entry.lane
        self.holds_ended += 1
        count_held(self, -1)
        message.state = RUNNING
        message.verdict = verdict
        unlink(message, &lane.first, &lane.last)

    cdef void take_back(self, Message message, int verdict) noexcept:
        """The hold is over, however it ended. HELD -> RUNNING, with a verdict, so that nobody has control. No Python code runs
        in here; let_hold_go() is to follow. The caller has a reference to the message."""
        self.leave_lane(message, verdict)
        message.by_token = False
        if message.native != NULL:
            native_side.hold_ended(self, message)

    cdef void let_hold_go(self, Message message) noexcept:
        """Let go of what a hold had. Python code may run: finalizers, which may do whatever they like with the message."""
        cdef bint strong = message.strong
        task = message.task
        message.task = None
        message.strong = False
        message.let_go()
        if task is not None:
            try:
                if not self.reactor.loop.is_closed():
                    task.cancel()
            except BaseException as error:
                self.reactor.report(error, f"the cancellation of {task!r}")
        if strong:
            Py_DECREF(message)

    cdef void held_weakly(self, Message message) noexcept:
        """The coroutine that held the message returned true: from now on it may be abandoned."""
        if message.strong and finalizer_is_trusted(message):
            message.strong = False
            Py_DECREF(message)

    cdef void release(self, Message message, int verdict) noexcept:
        """The message was given back, or can no longer be. HELD -> QUEUED, or GIVEN_BACK. Any thread, with the GIL."""
        Py_INCREF(message)  # what refers to it may be let go in between
        Py_INCREF(message)  # the queue's
        if self.reactor.thread == PyThread_get_thread_ident():
            self.collect_given()  # which were given back before it
            self.take_back(message, verdict)
            self.enqueue(message)  # first, so that whatever happens then finds it there
        else:
            self.give_from_elsewhere(message, verdict)
        self.let_hold_go(message)
        Py_DECREF(message)

    @cython.nonecheck(False)
    cdef void enqueue(self, Message message) noexcept nogil:
        """RUNNING -> QUEUED. The caller's reference to the message is the queue's from now on."""
        message.state = QUEUED
        message.following = NULL
        message.previous = self.last_queued
        if self.last_queued == NULL:
            self.first_queued = <PyObject *>message
        else:
            (<Message>self.last_queued).following = <PyObject *>message
        self.last_queued = <PyObject *>message
        if self.reactor.thread != 0:
            request_tick(&self.reactor.state)

    cdef void give_from_elsewhere(self, Message message, int verdict) noexcept:
        """HELD -> GIVEN_BACK. On another thread, with the GIL; the caller's reference is the list's from now on."""
        message.state = GIVEN_BACK
        message.verdict = verdict
        message.next_given = NULL
        if self.last_given == NULL:
            self.first_given = <PyObject *>message
        else:
            (<Message>self.last_given).next_given = <PyObject *>message
        self.last_given = <PyObject *>message
        self.given_count += 1
        self.reactor.wake()

    cdef bint collect_given(self) noexcept:
        """GIVEN_BACK -> QUEUED, for all that other threads gave back. Whether there were any."""
        cdef PyObject *each = self.first_given
        if each == NULL:
            return False
        self.first_given = NULL
        self.last_given = NULL
        self.given_count = 0
        while each != NULL:
            self.take_back(<Message>each, (<Message>each).verdict)
            self.enqueue(<Message>each)
            each = (<Message>each).next_given
        return True

    cdef void unlink_queued(self, Message message) noexcept:
        """QUEUED -> RUNNING. The caller has a reference to the message."""
        message.state = RUNNING
        unlink(message, &self.first_queued, &self.last_queued)
        Py_DECREF(message)

    cdef list all_held(self):
        """The messages that are held, each lane in order of age."""
        cdef Lane *lane = self.lanes
        cdef PyObject *each
        cdef list held = []
        while lane != NULL:
            each = lane.first
            while each != NULL:
                if is_alive(each) and (<Message>each).state == HELD:
                    held.append(<Message>each)
                each = (<Message>each).following
            lane = lane.next
        return held

    # -------------------------------------------------------------------------------------------------------------- turns

    cdef void drain(self) noexcept:
        """Rule 6: go on with messages that were given back, for a while."""
        cdef Message message
        cdef int left = TURN_ENTRIES
        self.collect_given()  # first: what was given back in time is not too late
        if self.native != NULL:
            native_side.absorb(self)
        if self.deadline.rung and self.reactor.thread != 0:
            self.expire()
        if self.first_queued == NULL:
            return
        cdef uint64_t now = self.reactor.state.uv.hrtime()
        cdef uint64_t until = now + TURN_NS
        while self.reactor.thread != 0 and self.first_queued != NULL and left > 0 and now < until:
            message = <Message>self.first_queued
            self.unlink_queued(message)
            if message.since:  # else it was counted when other plugins had their turn after the hold
                message.entry.counters.held_ns += now - message.since
            self.resume(message)
            left -= 1
            now = self.reactor.state.uv.hrtime()
        if self.first_queued != NULL:
            self.reactor.wake()

    cdef void resume(self, Message message) noexcept:
        """Go on as message.verdict says. RUNNING -> any. For the dispatcher to override."""

    # ---------------------------------------------------------------------------------------------------------- deadlines

    @cython.nonecheck(False)
    cdef void arm_deadline(self, uint64_t due) noexcept nogil:
        if self.deadline.due == 0 or due < self.deadline.due:
            self.deadline.due = due
            self.deadline.rung = False
            arm(self.deadline, on_deadline)

    cdef void expire(self) noexcept:
        """Rule 10: fail what is held too long, for a while, and arm the timer for the next. In a turn."""
        cdef Lane *lane
        cdef PyObject *each
        cdef Message message
        cdef Entry *entry = NULL
        cdef uint64_t now = self.reactor.state.uv.hrtime()
        cdef uint64_t until = now + TURN_NS
        cdef uint64_t next_due = 0
        cdef str text = None
        lane = self.lanes
        while lane != NULL:
            while lane.timeout and now < until:
                self.collect_given()
                each = oldest(lane)
                if each == NULL or (<Message>each).since + lane.timeout > now:
                    break
                message = <Message>each
                message.entry.counters.timeouts += 1
                message.entry.counters.held_ns += now - message.since
                self.take_back(message, TO_FAIL)  # first: all that follows may run Python code
                self.let_hold_go(message)
                if entry != message.entry:
                    entry = message.entry
                    text = (f"plugin {<str>entry.plugin} held the message in {<str>entry.hook} for longer than its "
                            f"hold_timeout of {lane.timeout / 1e9:g} s")
                    self.reactor.log((<Holder>entry.context).plugin.log, logging.WARNING, "%s", (text,), None)
                if message.verdict == TO_FAIL:  # and was not cancelled meanwhile
                    message.fail(HoldTimeout(text))
                self.resume(message)
                if self.reactor.thread == 0:
                    return
                now = self.reactor.state.uv.hrtime()
            lane = lane.next
        if now >= until:
            self.reactor.wake()  # more in the next turn
            return
        self.deadline.rung = False
        self.deadline.due = 0
        lane = self.lanes
        while lane != NULL:
            each = oldest(lane)
            if lane.timeout and each != NULL and (next_due == 0 or (<Message>each).since + lane.timeout < next_due):
                next_due = (<Message>each).since + lane.timeout
            lane = lane.next
        if next_due:
            self.arm_deadline(next_due)


@cython.nonecheck(False)
cdef void unlink(Message message, PyObject **first, PyObject **last) noexcept nogil:
    if message.previous == NULL:
        first[0] = message.following
    else:
        (<Message>message.previous).following = message.following
    if message.following == NULL:
        last[0] = message.previous
    else:
        (<Message>message.following).previous = message.previous
    message.previous = NULL
    message.following = NULL


@cython.nonecheck(False)
cdef inline void count_held(Control control, int change) noexcept nogil:
    """One more is held in place of running, or one less: `balance` sees both or neither."""
    store_version(&control.books_version, control.books_version + 1)
    fence()
    control.books.held += change
    control.books.running -= change
    store_version(&control.books_version, control.books_version + 1)


cdef PyObject *oldest(Lane *lane) noexcept:
    cdef PyObject *each = lane.first
    while each != NULL and not is_alive(each):
        each = (<Message>each).following
    return each


cdef inline bint is_alive(PyObject *message) noexcept:
    """False for a message whose deallocation was put off (deeply nested objects are) before its finalizer ran."""
    return message.ob_refcnt > 0
