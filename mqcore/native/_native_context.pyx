# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""The contexts of native plugins: their handles, and the functions of a plugin's life.

A dispatcher has a handle table from its first native context on, until it is closed.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t

from .._chain cimport new_native_function
from .._context cimport Context
from .._dispatch cimport Runner
from .._dispatcher cimport Dispatcher
from .._chain cimport Chain
from .._holds cimport HoldTable
from .._message cimport Drops, Entry, Message, NativeSide
from ..loop._watchdog_thread cimport WatchdogState, is_known, look_for_native, read_safely
from ..loop._reactor cimport NATIVE_GIL_PHASE, Caller, request_nogil_tick
from ..loop._atomic cimport get
from ..loop._list cimport append_all, first, init_list, is_empty
from ..loop._seal cimport seal
from ._diagnostics cimport count_lifecycle_call, log_records, raise_pending_exit
from ._hooks cimport NativeFrame, call_native, claim_given, drop_kept, end_native_hold, enter, leave, run_many_native
from ._library cimport Library
from ._nogil cimport gil_phase, nogil_phase, resume_given, stop
from ._slots cimport (
    CHUNK, CHUNK_BITS, CONTEXT, LIVE, Slot, Table, close_table, end_slot, forget_tables, get_kind, get_object,
    get_pointer, get_slot, handle_of, live_slot, load_int, make_live, open_table, slot_at, slot_of, state_of, take_slot,
    this_thread)

import os

from ..errors import MqError


# ------------------------------------------------------------------------------------------------------------ NativeSide

@cython.final
@cython.no_gc
cdef class NativePlugins(NativeSide):
    """The native plugins of one dispatcher, as the core sees them."""

    cdef int call(self, Message message, Entry *entry, bint timed, Drops *drops) noexcept:
        return call_native(self, message, entry, timed, drops)

    cdef Py_ssize_t run_many(
            self, object chain, tuple messages, Py_ssize_t index, list outcomes, object done, object variables) noexcept:
        return run_many_native(self, <Chain>chain, messages, index, outcomes, done, variables)

    cdef void hold_ended(self, void *native) noexcept:
        end_native_hold(native)

    cdef int claim(self, Message message, Drops *drops) noexcept:
        return claim_given(message, drops)

    cdef void close(self) noexcept:
        close(<Runner>self.runner, <Table *>self.table)


cdef int open_side(Runner runner) except -1:
    """The first native plugin of a dispatcher comes."""
    cdef NativePlugins side = NativePlugins.__new__(NativePlugins)
    side.runner = <PyObject *>runner
    side.table = open_table(<PyObject *>runner)
    if side.table == NULL:
        raise MqError("there are 255 dispatchers with native plugins already; close some")
    Py_INCREF(side)
    runner.holds.lists.native = <PyObject *>side
    runner.reactor.set_nogil_phase(nogil_phase, <void *>runner)
    runner.reactor.set_phase(NATIVE_GIL_PHASE, gil_phase, <void *>runner)
    cdef WatchdogState *watchdog = <WatchdogState *>runner.reactor.state.watchdog
    if watchdog != NULL:
        look_for_native(watchdog, caller_in, side.table)
    return 0


@cython.nonecheck(False)
cdef Caller *caller_in(void *owner, WatchdogState *watchdog, uint64_t **counter) noexcept nogil:
    """Whom the dispatcher's thread is calling now, if that is a native plugin, and what tells one call from another: for the
    watchdog's thread, in whose way nobody stops. So what is found here may be freed already, but for slots: it is read safely,
    and checked in the end."""
    cdef Table *table = <Table *>owner
    cdef PyObject *object = get_object(&table.message)
    cdef Slot *step = get_slot(&table.step)
    cdef Caller *caller = NULL
    cdef Entry *entry = NULL
    cdef Slot *slot
    if load_int(&table.inside) == 0:
        return NULL
    if object != NULL:
        if read_safely(watchdog, &(<Message>object).entry, &entry, sizeof(entry)) and entry != NULL:
            read_safely(watchdog, &entry.counters, &caller, sizeof(caller))  # they begin with it
        if step != NULL:
            counter[0] = &step.word
    else:
        slot = slot_of(get_pointer(&table.current))
        if slot != NULL and slot.object != NULL:
            read_safely(watchdog, &(<Context>slot.object).caller, &caller, sizeof(caller))
    return caller if is_known(watchdog, caller) else NULL


cdef void close(Runner runner, Table *table) noexcept:
    cdef Slot *slot
    cdef uint32_t each
    if runner.reactor.forked or table.owner != <PyObject *>runner:
        return
    runner.holds.lists.fast_path_off = True  # where this is called in a hook
    resume_given(runner, table)
    log_records(runner, table)
    for each in range(table.count):
        slot = &table.chunks[each >> CHUNK_BITS][each & CHUNK - 1]
        if get_kind(&slot.kind) == CONTEXT and state_of(get(&slot.word)) == LIVE:  # nobody cleaned it up
            end_context(<Context>slot.object)
    while not is_empty(&table.ending):
        stop(table, slot_at(first(&table.ending)))
    close_table(table)


cdef inline Table *table_in(HoldTable holds) noexcept nogil:
    return <Table *>(<NativeSide>holds.lists.native).table


def after_fork_in_child():
    forget_tables()


os.register_at_fork(after_in_child=after_fork_in_child)


# -------------------------------------------------------------------------------------------------------------- Contexts

cdef int begin_context(Context context) except -1:
    """Give a plugin's Context its handle."""
    cdef Slot *slot
    if context.handle != NULL:
        raise MqError(f"the context of plugin {context.name} was initialized already")
    if context.holds.lists.native == NULL:
        open_side((<Dispatcher>context.reactor.dispatcher).runner)
    slot = take_slot(table_in(context.holds), CONTEXT)
    if slot == NULL:
        raise MqError("there is no handle left for the context of a native plugin")
    slot.object = <PyObject *>context
    Py_INCREF(context)
    init_list(&slot.waiting.started)
    slot.data = NULL
    make_live(slot)
    context.handle = handle_of(slot)
    return 0


cdef void end_context(Context context) noexcept:
    """Its handle is stale, and its timers and watchers are called no more: ticks stop them."""
    cdef Slot *slot = live_slot(context.handle, CONTEXT)
    if slot == NULL:
        return
    append_all(&table_in(context.holds).ending, &slot.waiting.started)
    if context.reactor.thread != 0:
        request_nogil_tick(&context.reactor.state)
    context.handle = NULL
    drop_kept(slot)
    end_slot(table_in(context.holds), slot)
    Py_DECREF(context)


# --------------------------------------------------------------------------------------------------- Lifecycle functions

@cython.final
@cython.no_gc  # a library refers to nothing
cdef class LifecycleFunction:
    """A function of a native plugin's own life, callable from Python. It is called without the GIL, as it may block."""
    cdef str name
    cdef void *address  # NULL where the plugin has none
    cdef Library library

    def __call__(self, context=None):
        if self.name.startswith("mq_context_"):
            self.call_in(context)
            return None
        if self.name == "mq_version":
            return self.version()
        self.call()
        self.library.begun = self.name == "mq_initialize" and self.library.find("mq_cleanup") != NULL
        return None

    cdef int call(self) except -1:
        count_lifecycle_call(1)
        with nogil:
            (<void (*)() noexcept nogil>self.address)()
        count_lifecycle_call(-1)
        return raise_pending_exit()

    cdef int version(self) except? -1:
        cdef int number
        count_lifecycle_call(1)
        with nogil:
            number = (<int (*)() noexcept nogil>self.address)()
        count_lifecycle_call(-1)
        raise_pending_exit()
        return number

    cdef int call_in(self, object given) except -1:
        """The context begins or ends: its handle is valid in between, these functions included."""
        cdef Context context
        cdef bint begins = self.name == "mq_context_initialize"
        if type(given) is not Context:
            raise TypeError(f"{self.name}() needs a context")
        context = given
        if (context.plugin.context_initialize if begins else context.plugin.context_cleanup) is not self:
            raise TypeError(f"{self.name}() of another plugin than {context.name} needs a context of its own")
        if begins or not context.reactor.closed:
            context.reactor.check(self.name)
        if begins:
            begin_context(context)
            self.call_with(context)
        elif context.handle != NULL:
            self.call_with(context)
            end_context(context)
        return raise_pending_exit()

    cdef void call_with(self, Context context) noexcept:
        cdef Table *table = table_in(context.holds)
        cdef NativeFrame before
        cdef void *handle = context.handle
        if self.address == NULL:
            return
        enter(table, handle, NULL, NULL, this_thread(), &before)
        count_lifecycle_call(1)
        with nogil:
            (<void (*)(void *) noexcept nogil>self.address)(handle)
        count_lifecycle_call(-1)
        leave(table, &before)


cdef object new_lifecycle_function(str name, void *address, Library library):
    cdef LifecycleFunction function = LifecycleFunction.__new__(LifecycleFunction)
    function.name = name
    function.address = address
    function.library = library
    return function


cdef object new_hook(void *address, int kind, Library library):
    return new_native_function(address, kind, library)


seal(LifecycleFunction)
seal(NativePlugins)
