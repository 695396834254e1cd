# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""Message, its place in a step, and the states that it goes through.

A message carries its own place in its step, so that holding one allocates nothing:

    IDLE        in no step                                  -> RUNNING, TAKEN
    TAKEN       by run_many(), which has not come to it yet -> RUNNING, IDLE (refused, or native hooks alone passed it on)
    RUNNING     a hook of the step is being called          -> HELD, IDLE, QUEUED (from native hooks)
    HELD        a plugin has it; in the bucket of its timeout -> QUEUED, GIVEN_BACK, RUNNING (timeout, cancel, close, native)
    GIVEN_BACK  by another thread, abandoned, or behind such -> QUEUED
    QUEUED      given back; waits for a tick                -> RUNNING

`move` (in the .pxd) is the one function that changes the state, with the lists and the books that go with it. In it nothing
is allocated, dropped, formatted or called: nobody's code can run in the middle of a change (rule 21). What has to be dropped
is put aside in `Drops`, and dropped as the last thing that an entry point does.

A held message is referred to weakly, and its finalizer, which any thread may run, puts it into the list of what was given back.
Where Python does not call that finalizer, as the message's class gained another one while it was held, or it was called before,
the message is deallocated. Then all that Message itself has stays where it is, with no reference, as what waits in CPython's
trashcan does: by that nothing is waited for, and no memory is needed. The dispatcher's thread, with the GIL, puts a stand-in in
its place, which is abandoned as any other message, and finishes the deallocation. When the dispatcher closes, messages whose
deallocation has begun and has not come that far get a stand-in, too.
"""

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from .loop._atomic cimport get_byte
from .loop._lifetime cimport Lifetime
from .loop._list cimport append, is_empty, is_linked, unlink
from .loop._reactor cimport PyThread_get_thread_ident, Reactor, arm, header_of, uv_handle_t
from .loop._seal cimport seal, seal_base

from .errors import Abandoned, Cancelled, DispatcherClosed, HoldTimeout, RetryLimit

cdef extern from *:
    """
    #if CYTHON_USE_TYPE_SPECS
    #error "Message must be a static type: by that a subclass's dealloc, and no other, drops the type after mqcore_dealloc()"
    #endif

    static initproc mqcore_full_init;
    static inquiry mqcore_full_clear;

    /* Most messages are made without arguments: then there is nothing to do. */
    static int mqcore_quick_init(PyObject *self, PyObject *arguments, PyObject *names)
    {
        return names == NULL && PyTuple_GET_SIZE(arguments) == 0 ? 0 : mqcore_full_init(self, arguments, names);
    }

    /* Whether the collector may clear a message, which is for Cython's code to do. */
    static int (*mqcore_may_clear)(PyObject *);

    static int mqcore_clear(PyObject *self)
    {
        return mqcore_may_clear(self) ? mqcore_full_clear(self) : 0;
    }

    /* What the collector sees of a message, whose own members are Cython's code's to visit. */
    static traverseproc mqcore_full_traverse;
    static int (*mqcore_shows_members)(PyObject *);

    static int mqcore_traverse(PyObject *self, visitproc visit, void *argument)
    {
        return mqcore_shows_members(self) ? mqcore_full_traverse(self, visit, argument) : 0;
    }

    /* What a subclass has is gone when this is called, as is its part of what Python itself does about the end of an object. */
    static destructor mqcore_full_dealloc;
    static int (*mqcore_is_weak)(PyObject *);
    static void (*mqcore_defer)(PyObject *);

    static void mqcore_dealloc(PyObject *self)
    {
        if (!mqcore_is_weak(self)) {
            mqcore_full_dealloc(self);
            return;
        }
        if (Py_TYPE(self)->tp_dealloc == mqcore_dealloc && PyObject_CallFinalizerFromDealloc(self) < 0)
            return;  /* brought back to life */
        PyObject_GC_UnTrack(self);
        if (PyType_HasFeature(Py_TYPE(self), Py_TPFLAGS_HEAPTYPE))
            Py_INCREF(Py_TYPE(self));  /* a subclass's dealloc lets go of it next */
        mqcore_defer(self);
    }

    static void mqcore_finish_dealloc(PyObject *self)
    {
        PyTypeObject *type = Py_TYPE(self);
        Py_SET_REFCNT(self, 0);
        mqcore_full_dealloc(self);
        if (PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE))
            Py_DECREF(type);
    }

    static void mqcore_guard_dealloc(PyTypeObject *type, int (*is_weak)(PyObject *), void (*defer)(PyObject *))
    {
        mqcore_is_weak = is_weak;
        mqcore_defer = defer;
        mqcore_full_dealloc = type->tp_dealloc;
        type->tp_dealloc = mqcore_dealloc;
    }

    static void mqcore_guard(PyTypeObject *type, int (*may_clear)(PyObject *), int (*shows_members)(PyObject *))
    {
        mqcore_full_init = type->tp_init;
        type->tp_init = mqcore_quick_init;
        mqcore_may_clear = may_clear;
        mqcore_full_clear = type->tp_clear;
        type->tp_clear = mqcore_clear;
        mqcore_shows_members = shows_members;
        mqcore_full_traverse = type->tp_traverse;
        type->tp_traverse = mqcore_traverse;
    }
    """
    void guard "mqcore_guard"(
        PyTypeObject *, int (*may_clear)(PyObject *) noexcept, int (*shows_members)(PyObject *) noexcept)
    void guard_dealloc "mqcore_guard_dealloc"(
        PyTypeObject *, int (*is_weak)(PyObject *) noexcept, void (*defer)(PyObject *) noexcept)
    void finish_dealloc "mqcore_finish_dealloc"(PyObject *) noexcept

cdef extern from "Python.h":
    void PyObject_GC_Track(object)
    void PyObject_GC_UnTrack(object)
    bint PyObject_GC_IsTracked(object)
    bint PyObject_GC_IsFinalized(PyObject *)
    bint PyObject_IS_GC(object)
    void set_references "Py_SET_REFCNT"(PyObject *, Py_ssize_t) noexcept
    ctypedef struct TypeSlots "PyTypeObject":
        Py_ssize_t tp_basicsize
        Py_ssize_t tp_dictoffset
        void *tp_finalize


# --------------------------------------------------------------------------------------------------------------- Message

cdef class Message:
    """What passes through the hooks. Subclass it freely; no method needs to be called by a subclass.

    `Message(payload=None)`: `payload` is any object, for those who need no subclass; by keyword where a subclass takes
    arguments of its own, which are ignored here.

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

    def __init__(self, *args, **kwargs):
        if type(self) is Message and (len(args) + len(kwargs) > 1 or kwargs and "payload" not in kwargs):
            raise TypeError("Message() takes a payload and nothing else; a subclass may take what it likes")
        if "payload" in kwargs:
            self.payload = kwargs["payload"]
        elif args and type(self) is Message:
            self.payload = args[0]

    def __del__(self):
        # Any thread, inside any allocation: only queue. The queue's reference brings the message back to life.
        self.finalized = True
        if self.reference == WEAK:  # else it is called by hand
            self.track()
            abandon(self)

    cdef void track(self) noexcept:
        """Show the message to the garbage collector, and with it the live Hold that refers to it."""
        if not PyObject_GC_IsTracked(self):
            PyObject_GC_Track(self)
            if self.token != NULL and not PyObject_GC_IsTracked(<object>self.token):
                PyObject_GC_Track(<object>self.token)

    cdef void fail(self, object error, Drops *drops) noexcept:
        """The step fails, or will, with an exception that was raised; with None, it does not."""
        if self.failure is not None:
            drop_later(drops, self.failure)
        self.failure = error
        self.reason = NO_REASON
        if error is not None:
            self.track()

    cdef void fail_for(self, int reason, PyObject *row, Drops *drops) noexcept:
        """The step fails, or will, for a reason of the core's: at the plugin and hook of `row`, or with NULL at none."""
        if self.failure is not None:
            drop_later(drops, self.failure)
        if row == NULL:
            row = self.last_hook if self.entry == NULL else self.entry.hook
        self.failure = <object>row
        self.reason = reason

    cdef PyObject *current_plugin(self) noexcept:
        """The name of the plugin that is being called, or has the message, or gave it back last; NULL when it is in no step."""
        cdef Entry *entry = self.entry
        return NULL if entry == NULL or self.state == IDLE else entry.plugin

    def skip_others(self):
        """Let the step that the message is in end with the plugin that has it now: when that one says that it is done, by what
        it returns or by giving back, continue and retry are the same as complete. Failing stays failing.

        For a subclass whose plugins may decide about the message, as `Mail.reject` does; native plugins reach it by what is
        registered in `mqcore.native.accessors`. Any thread. Nothing happens when the message is in no step.
        """
        cdef Entry *entry = self.entry
        if self.current_plugin() == NULL:
            return
        self.skipping = True
        if (<Reactor>entry.lists.reactor).thread == PyThread_get_thread_ident():
            entry.lists.fast_path_off = True  # a chain of native hooks that is being called looks at it

    @property
    def error(self):
        """None, or the exception with which the last step failed."""
        if self.reason == NO_REASON or isinstance(self.failure, BaseException):
            return self.failure
        cdef int reason = self.reason
        row = self.failure
        try:
            error = error_for(reason, row, self.since, self.retries)
        except MemoryError:
            return NO_MEMORY_FOR[reason]
        if self.failure is row and self.reason == reason:  # else another step began while memory was made
            self.failure = error  # `reason` stays: the core goes by that, however often this is read
            self.track()
        return error

    @property
    def payload(self):
        """Any object; None until it is set. Lives as long as the message."""
        return self.content

    @payload.setter
    def payload(self, value):
        before = self.content  # dropped when this function ends
        self.content = value
        if PyObject_IS_GC(value):
            self.track()
        before = None

    @property
    def data(self):
        """A dict for plugins, each under its own name: `message.data[context.plugin.name]`. Lives as long as the message."""
        if self.plugin_data is None:
            made = {}
            if self.plugin_data is None:  # still, after memory was made
                self.plugin_data = made
                self.track()
        return self.plugin_data

    @property
    def holder(self):
        """The name of the plugin that holds the message now, or None."""
        return <str>self.entry.plugin if self.state == HELD else None


cdef class HoldBase(Lifetime):
    pass


cdef class NativeSide:

    cdef int call(self, Message message, Entry *entry, bint timed, Drops *drops) noexcept:
        """Call native hooks, from `entry` to the last before a Python one, or until one decides. What follows from it; where
        that was is left in message.entry."""

    cdef Py_ssize_t run_many(
            self, object chain, tuple messages, Py_ssize_t index, list outcomes, object done, object variables) noexcept:
        """Steps of messages that are TAKEN, from that at `index` on, through a chain of native hooks alone: how far it came.
        What is not CONTINUE is put into `outcomes`."""

    cdef void hold_ended(self, void *native) noexcept:
        """The core ends a native plugin's hold, however it came to that: `native` is what stood for it. Any thread."""

    cdef int claim(self, Message message, Drops *drops) noexcept:
        """Of a message that a native plugin has, and that is RUNNING: if the plugin has given control back, the decision, by
        which it is for the caller to go on. Else UNDECIDED."""
        return UNDECIDED

    cdef void close(self) noexcept:
        """The dispatcher closes: its steps have ended, and its plugins' contexts."""


@cython.final
cdef class CounterRow:
    pass


cdef CounterRow new_row(str plugin, str hook):
    cdef CounterRow row = CounterRow.__new__(CounterRow)
    row.plugin = plugin
    row.hook = hook
    return row


cdef TypeSlots *MESSAGE = <TypeSlots *><PyObject *>Message


cdef inline TypeSlots *slots_of(Message message) noexcept:
    return <TypeSlots *>(<PyObject *>message).ob_type


cdef bint finalizer_is_trusted(Message message) noexcept:
    """Whether the message's end will be seen. Python finalizes an object once, and a subclass may have its own way."""
    return not message.finalized and slots_of(message).tp_finalize == MESSAGE.tp_finalize


cdef int is_weak(PyObject *message) noexcept:
    return (<Message>message).reference == WEAK


cdef int may_clear(PyObject *message) noexcept:
    """In a step its chain and its `done` are needed, whatever refers to whom."""
    return (<Message>message).state == IDLE


cdef int shows_members(PyObject *message) noexcept:
    """Not while it is held weakly and its finalizer, which would bring it back, will not be called: its class has gained
    another one meanwhile, or it was called before. The collector would clear what the step still needs, such as `done`. It asks
    more than once, and must get the same answer each time. It does: native hooks, which go on without the GIL in between, make
    `reference` STRONG or NO_REFERENCE of the other, and nothing else that is looked at here."""
    return get_byte(&(<Message>message).reference) != WEAK or (
        slots_of(<Message>message).tp_finalize == MESSAGE.tp_finalize and not PyObject_GC_IsFinalized(message))


guard(<PyTypeObject *><PyObject *>Message, may_clear, shows_members)
guard_dealloc(<PyTypeObject *><PyObject *>Message, is_weak, defer_dealloc)
seal(CounterRow)
seal_base(HoldBase)
seal_base(NativeSide)


# ---------------------------------------------------------------------------------------------------------------- Errors

cdef object error_for(int reason, object row, uint64_t timeout, unsigned int retries):
    """The exception for a reason of the core's. `row`: the CounterRow of plugin and hook, or the name of the hook alone."""
    if isinstance(row, CounterRow):
        plugin, hook = (<CounterRow>row).plugin, (<CounterRow>row).hook
    else:
        plugin, hook = "", row
    if reason == TIMED_OUT:
        return HoldTimeout(
            f"plugin {plugin} held the message in {hook} for longer than its hold_timeout of {timeout / 1e9:g} s; what was to "
            f"give it back came too late or never; if the hook returned the value True by mistake, or started nothing that "
            f"gives it back, `mqcore check` shows the line of a Python plugin")
    if reason == ABANDONED:
        return Abandoned(
            f"plugin {plugin} took control of the message in {hook}, but no reference to the message or its Hold is left: "
            f"nobody can give it back")
    if reason == TOO_MANY_RETRIES:
        return RetryLimit(f"plugin {plugin} asked for retry {retries + 1} of one step of {hook}; max_retries is {retries}")
    if reason == CANCELLED:
        return Cancelled(f"the step of {hook} was cancelled")
    return DispatcherClosed(f"the dispatcher was closed while the message was in a step of {hook}")


cdef tuple NO_MEMORY_FOR = (  # by reason: where there is no memory for more
    None,
    HoldTimeout("a plugin held the message for longer than its hold_timeout"),
    Abandoned("a plugin took control of the message, but no reference to it is left"),
    RetryLimit("a plugin asked for too many retries"),
    Cancelled("the step was cancelled"),
    DispatcherClosed("the dispatcher was closed while the message was in a step"),
)


# ---------------------------------------------------------------------------------------------------------- Ends of holds

cdef void end_hold(Message message, Drops *drops) noexcept:
    """A hold is over, however that came: put aside what it had. Not of a message that is GIVEN_BACK."""
    if message.token != NULL:
        end_token(message, drops)
    if message.task is not None:
        cancel_later(drops, message.task)
        message.task = None
    if message.by_state.native != NULL:
        (<NativeSide>message.entry.lists.native).hold_ended(message.by_state.native)
        message.by_state.native = NULL
    if message.reference == STRONG:
        put_aside(drops, <PyObject *>message)  # the hold's reference
    message.reference = NO_REFERENCE
    message.by_token = False


cdef void end_token(Message message, Drops *drops) noexcept:
    """The Hold that there is becomes stale, and what was started on it ends."""
    cdef HoldBase token = <HoldBase>message.token
    message.token = NULL
    drops.stops = is_empty(&token.reactor.stopping)  # else they are for a tick, as what waits there already is
    token.detach()
    if token.message_held is not None:
        drop_later(drops, token.message_held)
        token.message_held = None


cdef void flush_all(Drops *drops, Reactor reactor) noexcept:
    cdef int index = 0
    if drops.task != NULL:
        task = <object>drops.task
        cancel_none(drops)
        if (<int (*)(Reactor, object) noexcept>cancel_task)(reactor, task) < 0:
            report_raised(reactor, "the cancellation of a coroutine hook's task")
    if drops.stops:
        drops.stops = False
        reactor.stop_some()
    while index < drops.count:
        index += 1
        Py_DECREF(<object>drops.items[index - 1])
    drops.count = 0


cdef int cancel_task(Reactor reactor, object task) except -1:
    if not reactor.loop.is_closed():
        task.cancel()
    return 0


cdef void abandon(Message message) noexcept:
    """Nobody can give it back any more. HELD -> GIVEN_BACK. Any thread, with the GIL, inside any allocation: it only queues."""
    cdef HoldLists *lists = message.entry.lists
    message.decision = TO_FAIL
    message.failure = <object>message.entry.row  # there was none: the step has not ended
    message.reason = ABANDONED
    if message.reference == WEAK:
        message.reference = NO_REFERENCE
    Py_INCREF(message)
    move(lists, message, HELD, GIVEN_BACK)
    (<Reactor>lists.reactor).wake()


cdef void defer_dealloc(PyObject *dead) noexcept:
    """A message is deallocated that is held weakly. What is left of it stays where it is, for the dispatcher's thread to come
    for. Any thread, with the GIL, inside any allocation."""
    cdef HoldLists *lists = (<Message>dead).entry.lists
    append(&lists.dead, &(<Message>dead).by_state.given)
    lists.given_count += 1
    (<Reactor>lists.reactor).wake()


cdef void stand_in_for(PyObject *dead, Message stand_in) noexcept:
    """Another message is abandoned in the place of one that has no reference any more. The dispatcher's thread; anybody's code
    may run in the end."""
    cdef HoldLists *lists = (<Message>dead).entry.lists
    set_references(dead, 1)  # else Cython's own, which come and go, would deallocate it
    take_place_of(lists, <Message>dead, stand_in)
    set_references(dead, 0)
    stand_in.track()
    abandon(stand_in)
    free_dead(lists, dead)


cdef void write_off(PyObject *dead) noexcept:
    """Where there is no memory for another one: its step ends without `done`. As above."""
    cdef HoldLists *lists = (<Message>dead).entry.lists
    cdef Drops drops
    no_drops(&drops)
    set_references(dead, 1)
    end_unseen(lists, <Message>dead, &drops)
    set_references(dead, 0)
    free_dead(lists, dead)
    flush(&drops, <Reactor>lists.reactor)


cdef void end_unseen(HoldLists *lists, Message message, Drops *drops) noexcept:
    """HELD -> IDLE, by way of RUNNING."""
    count_held_time(message, (<Reactor>lists.reactor).state.uv.hrtime())
    message.entry.counters.abandoned += 1
    message.entry.counters.failures += 1
    message.reference = NO_REFERENCE
    message.decision = TO_FAIL
    move(lists, message, HELD, RUNNING)
    move(lists, message, RUNNING, IDLE)
    message.entry = NULL
    message.decision = UNDECIDED
    message.suspended = False
    drop_later(drops, message.done)
    message.done = None
    drop_later(drops, message.args)
    message.args = None
    drop_later(drops, message.variables)
    message.variables = None
    drop_later(drops, message.chain)
    message.chain = None


cdef void free_dead(HoldLists *lists, PyObject *dead) noexcept:
    """Finish the deallocation, unless whoever began it is still at it."""
    if is_linked(&(<Message>dead).by_state.given):
        unlink(&(<Message>dead).by_state.given)
        lists.given_count -= 1
        finish_dealloc(dead)


cdef int make_stand_in(HoldLists *lists) except -1:
    """Have a message ready to stand in for another one."""
    message = Message.__new__(Message)
    if lists.stand_in == NULL:
        Py_INCREF(message)
        lists.stand_in = <PyObject *>message
    return 0


# ------------------------------------------------------------------------------------------------------------- Deadlines

cdef void arm_deadline(HoldLists *lists, uint64_t due) noexcept nogil:
    """Have the timer of all buckets fire at `due`, if it would fire later."""
    if lists.deadline.due == 0 or due < lists.deadline.due:
        lists.deadline.due = due
        lists.deadline.rung = False
        arm(lists.deadline, on_deadline)


cdef void on_deadline(uv_handle_t *uv_handle) noexcept nogil:
    if header_of(uv_handle).loop.uv.hrtime() < header_of(uv_handle).due:
        arm(header_of(uv_handle), on_deadline)
    else:
        header_of(uv_handle).rung = True
        (<Reactor>header_of(uv_handle).loop.owner).request_tick()
