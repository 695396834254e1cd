# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""The functions that native plugins call: all that `mqcore.h` declares. Who may call them, and when, is said there.

Each looks its handle up first. What it then does is in C where that suffices; for what is about connections and messages it
takes the GIL and asks the message's accessors, by use().
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.string cimport strlen

from .._context cimport Context
from .._dispatch cimport Runner
from .._message cimport TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, Message
from ..loop._dl cimport RTLD_GLOBAL, RTLD_LAZY, RTLD_NOLOAD, dlopen
from ..loop._list cimport append
from ..loop._poll cimport C_READ, C_WRITE, add_watch
from ._abi cimport MQ_Address, MQ_Connection, MQ_Context, MQ_IOWatcher, MQ_Message, MQ_Timer, c_bool, uv_loop_s
from ._access cimport (
    Access, ask_email, ask_field, ask_flag, ask_number, ask_presence, ask_reject, ask_size, ask_text, find_setting, find_symbol,
    get_data, in_control, log_unwatched, new_access, pass_bytes, pass_field, pass_flag, pass_text, set_data, use)
from ._diagnostics cimport is_of_another, record_misuse_of, write_log
from ._failures cimport fail_when_done
from ._hooks cimport give_back_by
from ._nogil cimport stop
from ._slots cimport (
    ADDRESS, CONNECTION, CONTEXT, MESSAGE, RECIPIENT, TIMER, WATCHER, Slot, Table, handle_of, is_inside, live_slot, make_live,
    part_in, slot_of, table_of, take_slot)

import os

cdef extern from *:
    """
    #define mqcore_caller() __builtin_extract_return_addr(__builtin_return_address(0))
    """
    void *caller "mqcore_caller"() nogil


def make_global():
    """Let the undefined symbols of plugins find these functions: extension modules are loaded without that."""
    path = os.fsencode(__file__)
    if dlopen(path, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL) == NULL:
        raise ImportError(f"{__file__} is not loaded as a shared library, so native plugins cannot call it", path=__file__)


# --------------------------------------------------------------------------------------------------------------- Control

cdef public void MQ_continue(MQ_Connection *connection) noexcept nogil:
    give_back_by(connection, TO_CONTINUE, NULL, caller())


cdef public void MQ_complete(MQ_Connection *connection) noexcept nogil:
    give_back_by(connection, TO_COMPLETE, NULL, caller())


cdef public void MQ_retry(MQ_Connection *connection) noexcept nogil:
    give_back_by(connection, TO_RETRY, NULL, caller())


cdef public void MQ_fail(MQ_Connection *connection, const char *text) noexcept nogil:
    cdef const char *reason = b"failed by a native plugin"
    if text != NULL:
        reason = text
    give_back_by(connection, TO_FAIL, reason, caller())


# -------------------------------------------------------------------------------------------------------------- Contexts

cdef Slot *started(void *handle, int kind, const char *what, void *by) noexcept nogil:
    """The slot of a context, timer or watcher, for a function that belongs to the dispatcher's thread; NULL: refused."""
    cdef Slot *slot = live_slot(handle, kind)
    if (slot == NULL or not is_inside(table_of(handle))
            or is_of_another(table_of(handle), handle if kind == CONTEXT else slot.owner)):
        record_misuse_of(handle, what, by)
        return NULL
    return slot


cdef public void *MQ_contextData(MQ_Context *context) noexcept nogil:
    cdef Slot *slot = started(context, CONTEXT, b"called MQ_contextData for no context, or outside of its calls", caller())
    return NULL if slot == NULL else slot.data


cdef public void MQ_setContextData(MQ_Context *context, void *data) noexcept nogil:
    cdef Slot *slot = started(context, CONTEXT, b"called MQ_setContextData for no context, or outside of its calls", caller())
    if slot != NULL:
        slot.data = data


cdef public const char *MQ_config(MQ_Context *context, const char *key) noexcept nogil:
    cdef Slot *slot = started(context, CONTEXT, b"called MQ_config for no context, or outside of its calls", caller())
    if slot == NULL or key == NULL:
        return NULL
    with gil:
        return find_setting(<Context>slot.object, slot, key)


cdef public uv_loop_s *MQ_uv(MQ_Context *context) noexcept nogil:
    if started(context, CONTEXT, b"called MQ_uv for no context, or outside of its calls", caller()) == NULL:
        return NULL
    return <uv_loop_s *>(<Runner>table_of(context).owner).reactor.state.pointer


cdef public void *MQ_uvSymbol(MQ_Context *context, const char *name) noexcept nogil:
    cdef Slot *slot = started(context, CONTEXT, b"called MQ_uvSymbol for no context, or outside of its calls", caller())
    if slot == NULL:
        return NULL
    if name == NULL or strlen(name) < 4 or name[0] != b"u" or name[1] != b"v" or name[2] != b"_":
        return NULL
    with gil:
        return find_symbol(<Context>slot.object, name)


# ---------------------------------------------------------------------------------------------------------------- Timers

cdef public MQ_Timer *MQ_startTimer(
        MQ_Context *context, float seconds, void (*callback)(void *) noexcept nogil, void *data) noexcept nogil:
    cdef Slot *owner = started(context, CONTEXT, b"called MQ_startTimer for no context, or outside of its calls", caller())
    cdef Table *table = table_of(context)
    cdef Slot *timer
    if owner == NULL:
        return NULL
    if not is_time(seconds) or callback == NULL or (<Runner>table.owner).closed:
        record_misuse_of(
            context, b"called MQ_startTimer with no callback, no number of seconds, or while its context ends", caller())
        return NULL
    timer = take_slot(table, TIMER)
    if timer == NULL:
        return NULL
    timer.owner = context
    timer.callback = <void *>callback
    timer.data = data
    timer.waiting.node.link.next = NULL
    timer.waiting.node.is_nogil = True
    append(&owner.waiting.started, &timer.link)
    make_live(timer)
    (<Runner>table.owner).reactor.start_node(&timer.waiting.node, <uint64_t>(<double>seconds * 1e9))
    return <MQ_Timer *>handle_of(timer)


cdef bint is_time(float seconds) noexcept nogil:
    return 0 <= seconds <= 1e9  # also refuses NaN


cdef public void MQ_resetTimer(MQ_Timer *timer, float seconds) noexcept nogil:
    cdef Slot *slot = started(timer, TIMER, b"reset a timer that is over, or outside of calls", caller())
    if slot != NULL and is_time(seconds):
        (<Runner>table_of(timer).owner).reactor.start_node(&slot.waiting.node, <uint64_t>(<double>seconds * 1e9))
    elif slot != NULL:
        record_misuse_of(timer, b"reset a timer to what is no number of seconds", caller())


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
    if callback == NULL or not C_READ <= events <= C_READ | C_WRITE or (<Runner>table.owner).closed:
        record_misuse_of(context, b"called MQ_ioWatch with no callback, no events, or while its context ends", caller())
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
        append(&owner.waiting.started, &watcher.link)
        make_live(watcher)
        failed = add_watch(&(<Runner>table.owner).reactor.state, &watcher.waiting.watch, fd, events)
        if failed == 0:
            return <MQ_IOWatcher *>handle_of(watcher)
        stop(table, watcher)
    with gil:
        log_unwatched(<Context>owner.object, fd, -failed)
    (&errno)[0] = -failed
    return NULL


cdef public void MQ_ioUnwatch(MQ_IOWatcher *watcher) noexcept nogil:
    cdef Slot *slot = started(watcher, WATCHER, b"stopped a watcher that is over, or outside of calls", caller())
    if slot != NULL:
        stop(table_of(watcher), slot)


# ----------------------------------------------------------------------------------------------- Connections and messages

cdef bint usable(void *handle, int part, const char *what, void *by) noexcept nogil:
    """Whether a handle is that part of a step that its plugin has control of, here and now; if not, that is refused."""
    cdef Slot *slot = slot_of(handle)
    cdef int given = part_in(handle)
    if (slot != NULL and in_control(slot, handle) and is_inside(table_of(handle))
            and (given == part or part == ADDRESS and given == RECIPIENT)
            and not is_of_another(table_of(handle), (<Message>slot.object).entry.handle)):
        return True
    record_misuse_of(handle, what, by)
    return False


cdef public void *MQ_connectionData(MQ_Connection *connection) noexcept nogil:
    cdef Access access = new_access(connection)
    if usable(connection, CONNECTION, b"called MQ_connectionData for a connection that it does not have", caller()):
        with gil:
            use(get_data, &access, "data")
    return access.pointer


cdef public void MQ_setConnectionData(MQ_Connection *connection, void *data) noexcept nogil:
    cdef Access access = new_access(connection)
    access.pointer = data
    if usable(connection, CONNECTION, b"called MQ_setConnectionData for a connection that it does not have", caller()):
        with gil:
            use(set_data, &access, "data")


cdef public int MQ_fileDescriptor(MQ_Connection *connection) noexcept nogil:
    cdef Access access = new_access(connection)
    access.number = -1
    if usable(connection, CONNECTION, b"called MQ_fileDescriptor for a connection that it does not have", caller()):
        with gil:
            use(ask_number, &access, "file_descriptor")
    return access.number


cdef public size_t MQ_send(MQ_Connection *connection, const void *buffer, size_t size) noexcept nogil:
    cdef Access access = new_access(connection)
    access.given = buffer
    access.size = size
    if not usable(connection, CONNECTION, b"called MQ_send for a connection that it does not have", caller()) or buffer == NULL:
        return 0
    with gil:
        use(ask_flag, &access, "reply_due")
        if not access.number:
            use(pass_bytes, &access, "send")
            return size if access.number else 0
    record_misuse_of(
        connection, b"called MQ_send while the other side waits for a reply, which it would take this for", caller())
    return 0


cdef public c_bool MQ_secure(MQ_Connection *connection) noexcept nogil:
    cdef Access access = new_access(connection)
    if usable(connection, CONNECTION, b"called MQ_secure for a connection that it does not have", caller()):
        with gil:
            use(ask_flag, &access, "secure")
    return access.number != 0


cdef public c_bool MQ_authenticated(MQ_Connection *connection) noexcept nogil:
    cdef Access access = new_access(connection)
    if usable(connection, CONNECTION, b"called MQ_authenticated for a connection that it does not have", caller()):
        with gil:
            use(ask_flag, &access, "authenticated")
    return access.number != 0


cdef public void MQ_setAuthenticated(MQ_Connection *connection, c_bool authenticated) noexcept nogil:
    cdef Access access = new_access(connection)
    access.number = authenticated
    if usable(connection, CONNECTION, b"called MQ_setAuthenticated for a connection that it does not have", caller()):
        with gil:
            use(pass_flag, &access, "set_authenticated")


cdef public const char *MQ_helo(MQ_Connection *connection) noexcept nogil:
    cdef Access access = new_access(connection)
    if usable(connection, CONNECTION, b"called MQ_helo for a connection that it does not have", caller()):
        with gil:
            use(ask_text, &access, "helo")
    return access.text


cdef public const char *MQ_peer(MQ_Connection *connection) noexcept nogil:
    cdef Access access = new_access(connection)
    if usable(connection, CONNECTION, b"called MQ_peer for a connection that it does not have", caller()):
        with gil:
            use(ask_text, &access, "peer")
    return access.text


cdef public void MQ_reject(MQ_Connection *connection, int code, const char *text) noexcept nogil:
    cdef Access access = new_access(connection)
    cdef Slot *slot = slot_of(connection)
    access.number = code
    access.given = b"refused"
    if text != NULL:
        access.given = text
    access.size = strlen(<const char *>access.given)
    if usable(connection, CONNECTION, b"called MQ_reject for a connection that it does not have", caller()):
        with gil:
            use(ask_reject, &access, "reject")
        if access.number != 1 and in_control(slot, connection):
            fail_when_done(slot, code, <const char *>access.given)


cdef MQ_Address *address_of(void *message, int part) noexcept nogil:
    """The handle of an address of a message, or NULL where it has none."""
    cdef Access access = new_access(message)
    with gil:
        use(ask_presence, &access, "envelope" if part == ADDRESS else "recipient")
    return <MQ_Address *>(<char *>message - MESSAGE + part) if access.number else NULL


cdef public MQ_Address *MQ_envelope(MQ_Message *message) noexcept nogil:
    if not usable(message, MESSAGE, b"called MQ_envelope for a message that it does not have", caller()):
        return NULL
    return address_of(message, ADDRESS)


cdef public MQ_Address *MQ_recipient(MQ_Message *message) noexcept nogil:
    if not usable(message, MESSAGE, b"called MQ_recipient for a message that it does not have", caller()):
        return NULL
    return address_of(message, RECIPIENT)


cdef public void MQ_setEnvelope(MQ_Message *message, const char *envelope, size_t size) noexcept nogil:
    cdef Access access = new_access(message)
    access.given = envelope
    access.size = size
    if usable(message, MESSAGE, b"called MQ_setEnvelope for a message that it does not have", caller()):
        with gil:
            use(pass_text, &access, "set_envelope")


cdef public void MQ_setRecipient(MQ_Message *message, const char *recipient, size_t size) noexcept nogil:
    cdef Access access = new_access(message)
    access.given = recipient
    access.size = size
    if usable(message, MESSAGE, b"called MQ_setRecipient for a message that it does not have", caller()):
        with gil:
            use(pass_text, &access, "set_recipient")


cdef public const char *MQ_email(MQ_Address *address) noexcept nogil:
    cdef Access access = new_access(address)
    if usable(address, ADDRESS, b"called MQ_email for an address that it does not have", caller()):
        with gil:
            use(ask_email, &access, "email")
    return access.text


cdef public const char *MQ_mime(MQ_Message *message) noexcept nogil:
    cdef Access access = new_access(message)
    if usable(message, MESSAGE, b"called MQ_mime for a message that it does not have", caller()):
        with gil:
            use(ask_text, &access, "mime")
    return access.text


cdef public void MQ_setMime(MQ_Message *message, const char *mime, size_t size) noexcept nogil:
    cdef Access access = new_access(message)
    access.given = mime
    access.size = size
    if usable(message, MESSAGE, b"called MQ_setMime for a message that it does not have", caller()) and mime != NULL:
        with gil:
            use(pass_bytes, &access, "set_mime")


cdef public size_t MQ_mimeSize(MQ_Message *message) noexcept nogil:
    cdef Access access = new_access(message)
    if usable(message, MESSAGE, b"called MQ_mimeSize for a message that it does not have", caller()):
        with gil:
            use(ask_size, &access, "mime")
    return access.size


cdef public const char *MQ_header(MQ_Message *message, const char *name) noexcept nogil:
    cdef Access access = new_access(message)
    if usable(message, MESSAGE, b"called MQ_header for a message that it does not have", caller()) and name != NULL:
        access.given = name
        access.size = strlen(name)
        with gil:
            use(ask_field, &access, "header")
    return access.text


cdef public void MQ_addHeader(MQ_Message *message, const char *name, const char *value) noexcept nogil:
    cdef Access access = new_access(message)
    if (usable(message, MESSAGE, b"called MQ_addHeader for a message that it does not have", caller())
            and name != NULL and value != NULL):
        access.given = name
        access.size = strlen(name)
        access.pointer = <void *>value
        with gil:
            use(pass_field, &access, "add_header")


cdef public c_bool MQ_local(MQ_Message *message) noexcept nogil:
    cdef Access access = new_access(message)
    if usable(message, MESSAGE, b"called MQ_local for a message that it does not have", caller()):
        with gil:
            use(ask_flag, &access, "local")
    return access.number != 0


cdef public void MQ_setLocal(MQ_Message *message, c_bool local) noexcept nogil:
    cdef Access access = new_access(message)
    access.number = local
    if usable(message, MESSAGE, b"called MQ_setLocal for a message that it does not have", caller()):
        with gil:
            use(pass_flag, &access, "set_local")


cdef public const char *MQ_json(MQ_Message *message) noexcept nogil:
    cdef Access access = new_access(message)
    if usable(message, MESSAGE, b"called MQ_json for a message that it does not have", caller()):
        with gil:
            use(ask_text, &access, "json")
    return access.text


cdef public void MQ_setJson(MQ_Message *message, const char *json, size_t size) noexcept nogil:
    cdef Access access = new_access(message)
    access.given = json
    access.size = size
    if usable(message, MESSAGE, b"called MQ_setJson for a message that it does not have", caller()) and json != NULL:
        with gil:
            use(pass_bytes, &access, "set_json")


# ------------------------------------------------------------------------------------------------------------------- Log

cdef public void MQ_log(int priority, const char *message) noexcept nogil:
    if message != NULL:
        write_log(priority, message, caller())
