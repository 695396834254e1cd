# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""The functions that native plugins call: all that `mqcore.h` declares. Who may call them, and when, is said there.

Each looks its handle up first. What it then does is in C where that suffices; what is about connections and messages goes to
the accessors that are registered for the class of the message, with the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.string cimport strlen

from ._abi cimport MQ_Address, MQ_Connection, MQ_Context, MQ_IOWatcher, MQ_Message, MQ_Timer, c_bool, uv_loop_s
from ..loop._atomic cimport load, store
from ._nogil cimport join_context, stop
from .._context cimport Context
from ._slots cimport (
    ADDRESS, CALLED, CONNECTION, CONTEXT, HELD_BY, LIVE, MESSAGE, RECIPIENT, STEP, TIMER, WATCHER, Slot, Table,
    generation_in, generation_of, handle_of, is_inside, live_slot, part_in, slot_of, state_of, table_of, take_slot)
from .._dispatch cimport Dispatcher
from ..loop._call cimport ends_program
from ..loop._reactor cimport Reactor
from .._message cimport TO_COMPLETE, TO_CONTINUE, TO_RETRY, Message
from ._hooks cimport OF_ADDRESS, give, keep
from ._diagnostics cimport refuse, write_log
from ..loop._poll cimport C_READ, C_WRITE, add_watch
from ..loop._lifetime cimport cannot_watch

import logging
import os

from .accessors import accessors_of

cdef extern from *:
    """
    #define mqcore_caller() __builtin_extract_return_addr(__builtin_return_address(0))
    """
    void *caller "mqcore_caller"() nogil

cdef extern from "dlfcn.h" nogil:
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    int RTLD_GLOBAL, RTLD_LAZY, RTLD_NOLOAD

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    const char *PyUnicode_AsUTF8(object) except NULL


def make_global():
    """Let the undefined symbols of plugins find these functions: extension modules are loaded without that."""
    path = os.fsencode(__file__)
    if dlopen(path, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL) == NULL:
        raise ImportError(f"{__file__} is not loaded as a shared library, so native plugins cannot call it", path=__file__)


# --------------------------------------------------------------------------------------------------------------- Control

cdef public void MQ_continue(MQ_Connection *connection) noexcept nogil:
    give(connection, TO_CONTINUE, caller())


cdef public void MQ_complete(MQ_Connection *connection) noexcept nogil:
    give(connection, TO_COMPLETE, caller())


cdef public void MQ_retry(MQ_Connection *connection) noexcept nogil:
    give(connection, TO_RETRY, caller())


# -------------------------------------------------------------------------------------------------------------- Contexts

cdef Slot *started(void *handle, int kind, const char *what, void *by) noexcept nogil:
    """The slot of a context, timer or watcher, for a function that belongs to the dispatcher's thread; NULL: refused."""
    cdef Slot *slot = live_slot(handle, kind)
    if slot == NULL or not is_inside(table_of(handle)):
        refuse(handle, what, by)
        return NULL
    return slot


cdef public void *MQ_contextData(MQ_Context *context) noexcept nogil:
    cdef Slot *slot = started(context, CONTEXT, b"called MQ_contextData for no context, or outside of its calls", caller())
    return NULL if slot == NULL else slot.data


cdef public void MQ_setContextData(MQ_Context *context, void *data) noexcept nogil:
    cdef Slot *slot = started(context, CONTEXT, b"called MQ_setContextData for no context, or outside of its calls", caller())
    if slot != NULL:
        slot.data = data


cdef public uv_loop_s *MQ_uv(MQ_Context *context) noexcept nogil:
    if started(context, CONTEXT, b"called MQ_uv for no context, or outside of its calls", caller()) == NULL:
        return NULL
    return <uv_loop_s *>(<Dispatcher>table_of(context).owner).reactor.state.pointer


cdef public void *MQ_uvSymbol(MQ_Context *context, const char *name) noexcept nogil:
    if started(context, CONTEXT, b"called MQ_uvSymbol for no context, or outside of its calls", caller()) == NULL:
        return NULL
    if name == NULL or strlen(name) < 4 or name[0] != b"u" or name[1] != b"v" or name[2] != b"_":
        return NULL
    with gil:
        return symbol((<Dispatcher>table_of(context).owner).reactor, name)


cdef void *symbol(Reactor reactor, const char *name) noexcept:
    cdef bytes path = os.fsencode(reactor.library.path)
    cdef void *module = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    return NULL if module == NULL else dlsym(module, name)


# ---------------------------------------------------------------------------------------------------------------- Timers

cdef public MQ_Timer *MQ_startTimer(
        MQ_Context *context, float seconds, void (*callback)(void *) noexcept nogil, void *data) noexcept nogil:
    cdef Slot *owner = started(context, CONTEXT, b"called MQ_startTimer for no context, or outside of its calls", caller())
    cdef Table *table = table_of(context)
    cdef Slot *timer
    if owner == NULL:
        return NULL
    if not is_time(seconds) or callback == NULL or (<Dispatcher>table.owner).closed:
        refuse(context, b"called MQ_startTimer with no callback, no number of seconds, or while its context ends", caller())
        return NULL
    timer = take_slot(table, TIMER)
    if timer == NULL:
        return NULL
    timer.owner = context
    timer.callback = <void *>callback
    timer.data = data
    timer.waiting.node.link.next = NULL
    timer.waiting.node.is_nogil = True
    join_context(owner, timer)
    store(&timer.word, timer.word | LIVE)
    (<Dispatcher>table.owner).reactor.start_node(&timer.waiting.node, <uint64_t>(<double>seconds * 1e9))
    return <MQ_Timer *>handle_of(timer)


cdef bint is_time(float seconds) noexcept nogil:
    return 0 <= seconds <= 1e9  # also refuses NaN


cdef public void MQ_resetTimer(MQ_Timer *timer, float seconds) noexcept nogil:
    cdef Slot *slot = started(timer, TIMER, b"reset a timer that is over, or outside of calls", caller())
    if slot != NULL and is_time(seconds):
        (<Dispatcher>table_of(timer).owner).reactor.start_node(&slot.waiting.node, <uint64_t>(<double>seconds * 1e9))
    elif slot != NULL:
        refuse(timer, b"reset a timer to what is no number of seconds", caller())


cdef public void MQ_stopTimer(MQ_Timer *timer) noexcept nogil:
    cdef Slot *slot = started(timer, TIMER, b"stopped a timer that is over, or outside of calls", caller())
    if slot != NULL:
        stop(table_of(timer), slot)


# -------------------------------------------------------------------------------------------------------------- Watchers

cdef public MQ_IOWatcher *MQ_ioWatch(
        MQ_Context *context, int fd, int events,
        void (*callback)(MQ_IOWatcher *, int, int, void *) noexcept nogil, void *data) noexcept nogil:
    cdef Slot *owner = started(context, CONTEXT, b"called MQ_ioWatch for no context, or outside of its calls", caller())
    cdef Table *table = table_of(context)
    cdef Slot *watcher
    cdef int failed = -ENOMEM
    if owner == NULL:
        return NULL
    if callback == NULL or not C_READ <= events <= C_READ | C_WRITE or (<Dispatcher>table.owner).closed:
        refuse(context, b"called MQ_ioWatch with no callback, no events, or while its context ends", caller())
        return NULL
    watcher = take_slot(table, WATCHER)
    if watcher != NULL:
        watcher.owner = context
        watcher.callback = <void *>callback
        watcher.data = data
        watcher.fd = fd
        watcher.waiting.watch.poll = NULL
        watcher.waiting.watch.ready.next = NULL
        watcher.waiting.watch.lost = 0
        watcher.waiting.watch.is_nogil = True
        join_context(owner, watcher)
        store(&watcher.word, watcher.word | LIVE)
        failed = add_watch(&(<Dispatcher>table.owner).reactor.state, &watcher.waiting.watch, fd, events)
        if failed == 0:
            return <MQ_IOWatcher *>handle_of(watcher)
        stop(table, watcher)
    tell_unwatched(<Context>owner.object, fd, -failed)
    (&errno)[0] = -failed
    return NULL


cdef void tell_unwatched(Context context, int fd, int error) noexcept with gil:
    context.reactor.log(
        context.log, logging.WARNING, "plugin %s: MQ_ioWatch: %s", (context.name, cannot_watch(fd, error)), None)


cdef public void MQ_ioUnwatch(MQ_IOWatcher *watcher) noexcept nogil:
    cdef Slot *slot = started(watcher, WATCHER, b"stopped a watcher that is over, or outside of calls", caller())
    if slot != NULL:
        stop(table_of(watcher), slot)


# ----------------------------------------------------------------------------------------------- Connections and messages

cdef bint in_control(Slot *slot, void *handle) noexcept nogil:
    """Whether the plugin with this handle has control of the step."""
    cdef uint64_t word = load(&slot.word)
    return (slot.kind == STEP and generation_of(word) == generation_in(handle)
            and (state_of(word) == CALLED or state_of(word) == HELD_BY))


cdef bint usable(void *handle, int part, const char *what, void *by) noexcept nogil:
    """Whether a handle is that part of a step that its plugin has control of, here and now; if not, that is refused."""
    cdef Slot *slot = slot_of(handle)
    cdef int given = part_in(handle)
    if (slot != NULL and in_control(slot, handle) and is_inside(table_of(handle))
            and (given == part or part == ADDRESS and given == RECIPIENT)):
        return True
    refuse(handle, what, by)
    return False


cdef object use(void *handle, str what, tuple values, object otherwise):
    """Call the accessor of that name for the message; `otherwise` when it raises, which is logged."""
    cdef Slot *slot = slot_of(handle)
    cdef Message message
    cdef Context context
    if not in_control(slot, handle):
        return otherwise
    message = <Message>slot.object
    context = <Context>message.entry.context
    try:
        return getattr(accessors_of(type(message)), what)(message, *values)
    except BaseException as error:
        tell_raised(context, what, error)
        return otherwise


cdef void tell_raised(Context context, str what, object error) noexcept:
    if ends_program(error):
        context.reactor.raise_through_loop(error)
    else:
        context.reactor.log(context.log, logging.ERROR, "plugin %s: %s raised", (context.name, what), error)


cdef bint use_bool(void *handle, str what) noexcept:
    return use(handle, what, (), False) is True


cdef long use_int(void *handle, str what, tuple values, long otherwise) noexcept:
    value = use(handle, what, values, otherwise)
    return <long>value if type(value) is int and -1 <= value < 2**62 else otherwise


cdef const char *use_text(void *handle, str what) noexcept:
    """What the accessor says, a str, bytes or None, as a C string that is kept as long as the handle."""
    return as_text(handle, use(handle, what, (), None))


cdef const char *as_text(void *handle, object value) noexcept:
    cdef Slot *slot = slot_of(handle)
    cdef const char *string = NULL
    try:
        if isinstance(value, bytes):
            value = bytes(value)  # of no subclass: nothing runs when it is let go
            string = PyBytes_AS_STRING(value)
        elif isinstance(value, str):
            value = str.__str__(value)
            string = PyUnicode_AsUTF8(value)
        if string == NULL or not in_control(slot, handle):
            return NULL
        keep(slot, value)
        return string
    except UnicodeError:  # a lone surrogate
        return as_text(handle, value.encode("utf-8", "surrogateescape" if is_escaped(value) else "replace"))


cdef bint is_escaped(str value) noexcept:
    """Whether all surrogates in it stand for bytes that were not UTF-8."""
    try:
        value.encode("utf-8", "surrogateescape")
        return True
    except UnicodeError:
        return False


cdef bint give_copy(void *handle, str what, const void *string, size_t size, bint is_text) noexcept:
    """Call the accessor with bytes or text that a plugin has given; NULL is None. Whether it returned True."""
    cdef Context context
    if not in_control(slot_of(handle), handle):
        return False
    context = context_of(handle)  # first: what is copied takes memory, for which garbage may be collected
    try:
        value = None if string == NULL else copy_of(string, size)
        if is_text and value is not None:
            value = value.decode("utf-8", "surrogateescape")
    except Exception as error:
        tell_raised(context, what, error)
        return False
    return use(handle, what, (value,), False) is True


cdef bytes copy_of(const void *string, size_t size):
    if size > <size_t>PY_SSIZE_T_MAX:
        raise OverflowError(f"a size of {size} bytes")
    return (<const char *>string)[:size]


cdef Context context_of(void *handle):
    return <Context>(<Message>slot_of(handle).object).entry.context


cdef class Pointer:
    """What a plugin keeps with a connection."""
    cdef void *value


cdef void *connection_data(void *connection) noexcept:
    data = use(connection, "data", (), None)
    if type(data) is not dict or not in_control(slot_of(connection), connection):
        return NULL
    pointer = (<dict>data).get(context_of(connection).plugin)
    return (<Pointer>pointer).value if type(pointer) is Pointer else NULL


cdef void set_connection_data(void *connection, void *value) noexcept:
    cdef Pointer pointer = Pointer.__new__(Pointer)
    pointer.value = value
    data = use(connection, "data", (), None)
    if type(data) is dict and in_control(slot_of(connection), connection):
        (<dict>data)[context_of(connection).plugin] = pointer


cdef public void *MQ_connectionData(MQ_Connection *connection) noexcept nogil:
    if not usable(connection, CONNECTION, b"called MQ_connectionData for a connection that it does not have", caller()):
        return NULL
    with gil:
        return connection_data(connection)


cdef public void MQ_setConnectionData(MQ_Connection *connection, void *data) noexcept nogil:
    if usable(connection, CONNECTION, b"called MQ_setConnectionData for a connection that it does not have", caller()):
        with gil:
            set_connection_data(connection, data)


cdef public int MQ_fileDescriptor(MQ_Connection *connection) noexcept nogil:
    if not usable(connection, CONNECTION, b"called MQ_fileDescriptor for a connection that it does not have", caller()):
        return -1
    with gil:
        return <int>use_int(connection, "file_descriptor", (), -1)


cdef public size_t MQ_send(MQ_Connection *connection, const void *buffer, size_t size) noexcept nogil:
    if not usable(connection, CONNECTION, b"called MQ_send for a connection that it does not have", caller()) or buffer == NULL:
        return 0
    with gil:
        return size if give_copy(connection, "send", buffer, size, False) else 0


cdef public c_bool MQ_secure(MQ_Connection *connection) noexcept nogil:
    if not usable(connection, CONNECTION, b"called MQ_secure for a connection that it does not have", caller()):
        return False
    with gil:
        return use_bool(connection, "secure")


cdef public c_bool MQ_authenticated(MQ_Connection *connection) noexcept nogil:
    if not usable(connection, CONNECTION, b"called MQ_authenticated for a connection that it does not have", caller()):
        return False
    with gil:
        return use_bool(connection, "authenticated")


cdef public void MQ_setAuthenticated(MQ_Connection *connection, c_bool authenticated) noexcept nogil:
    if usable(connection, CONNECTION, b"called MQ_setAuthenticated for a connection that it does not have", caller()):
        with gil:
            use(connection, "set_authenticated", (True if authenticated else False,), None)


cdef MQ_Address *address_of(void *message, int part, const char *what, void *by) noexcept nogil:
    """The handle of an address of a message, or NULL where it has none."""
    if not usable(message, MESSAGE, what, by):
        return NULL
    with gil:
        if use(message, "envelope" if part == ADDRESS else "recipient", (), None) is None:
            return NULL
    return <MQ_Address *>(<char *>message - MESSAGE + part)


cdef public MQ_Address *MQ_envelope(MQ_Message *message) noexcept nogil:
    return address_of(message, ADDRESS, b"called MQ_envelope for a message that it does not have", caller())


cdef public MQ_Address *MQ_recipient(MQ_Message *message) noexcept nogil:
    return address_of(message, RECIPIENT, b"called MQ_recipient for a message that it does not have", caller())


cdef public void MQ_setEnvelope(MQ_Message *message, const char *envelope, size_t size) noexcept nogil:
    if usable(message, MESSAGE, b"called MQ_setEnvelope for a message that it does not have", caller()):
        with gil:
            give_copy(message, "set_envelope", envelope, size, True)


cdef public void MQ_setRecipient(MQ_Message *message, const char *recipient, size_t size) noexcept nogil:
    if usable(message, MESSAGE, b"called MQ_setRecipient for a message that it does not have", caller()):
        with gil:
            give_copy(message, "set_recipient", recipient, size, True)


cdef const char *email(void *address) noexcept:
    cdef Message message = <Message>slot_of(address).object
    if message.entry.kind == OF_ADDRESS:
        value = message.args[0] if message.args else None
    else:
        value = use(address, "recipient" if part_in(address) == RECIPIENT else "envelope", (), None)
    return as_text(address, value or None)


cdef public const char *MQ_email(MQ_Address *address) noexcept nogil:
    if not usable(address, ADDRESS, b"called MQ_email for an address that it does not have", caller()):
        return NULL
    with gil:
        return email(address)


cdef public const char *MQ_mime(MQ_Message *message) noexcept nogil:
    if not usable(message, MESSAGE, b"called MQ_mime for a message that it does not have", caller()):
        return NULL
    with gil:
        return use_text(message, "mime")


cdef public void MQ_setMime(MQ_Message *message, const char *mime, size_t size) noexcept nogil:
    if usable(message, MESSAGE, b"called MQ_setMime for a message that it does not have", caller()) and mime != NULL:
        with gil:
            give_copy(message, "set_mime", mime, size, False)


cdef public c_bool MQ_local(MQ_Message *message) noexcept nogil:
    if not usable(message, MESSAGE, b"called MQ_local for a message that it does not have", caller()):
        return False
    with gil:
        return use_bool(message, "local")


cdef public void MQ_setLocal(MQ_Message *message, c_bool local) noexcept nogil:
    if usable(message, MESSAGE, b"called MQ_setLocal for a message that it does not have", caller()):
        with gil:
            use(message, "set_local", (True if local else False,), None)


cdef public const char *MQ_json(MQ_Message *message) noexcept nogil:
    if not usable(message, MESSAGE, b"called MQ_json for a message that it does not have", caller()):
        return NULL
    with gil:
        return use_text(message, "json")


cdef public void MQ_setJson(MQ_Message *message, const char *json, size_t size) noexcept nogil:
    if usable(message, MESSAGE, b"called MQ_setJson for a message that it does not have", caller()) and json != NULL:
        with gil:
            give_copy(message, "set_json", json, size, False)


# ------------------------------------------------------------------------------------------------------------------- Log

cdef public void MQ_log(int priority, const char *message) noexcept nogil:
    if message != NULL:
        write_log(priority, message, caller())
