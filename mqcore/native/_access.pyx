# cython: nonecheck=False
# (What is called for a plugin that has control has a message.)
"""How the functions of mqcore.h reach what Python has: the accessors that are registered for the message's class.

Accessors are anybody's code. So each function here that calls one may raise, and use(), which calls them all, is where that
ends: the error is logged under the plugin's name, or leaves through the loop, and the Access is as it was. An accessor may
also end the step: what belongs to it is looked at anew after each call.
"""

import json
import logging
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from .._context cimport Context
from .._message cimport Message, report_raised
from ..loop._call cimport ends_program, take_error
from ..loop._dl cimport RTLD_LAZY, RTLD_NOLOAD, dlopen, dlsym
from ..loop._lifetime cimport cannot_watch
from ..loop._reactor cimport Reactor
from ..loop._seal cimport seal
from ._arguments cimport OF_ADDRESS
from ._hooks cimport keep
from ._slots cimport RECIPIENT, Slot, part_in, slot_of

from .accessors import accessors_of

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    const char *PyUnicode_AsUTF8(object) except NULL


cdef void use(access_function function, Access *access, str name) noexcept:
    """Call `function`, unless the plugin lost control while it waited for the GIL."""
    cdef Slot *slot = slot_of(access.handle)
    if in_control(slot, access.handle):
        use_for(<Context>(<Message>slot.object).entry.context, function, access, name)


cdef void use_for(Context context, access_function function, Access *access, str name) noexcept:
    if (<int (*)(Access *, str) noexcept>function)(access, name) < 0:
        function_raised(context, name)


cdef void function_raised(Context context, str name) noexcept:
    """Log what was just raised for a plugin; what ends the program leaves through the loop."""
    cdef PyObject *error = take_error()
    if ends_program(<object>error):
        context.reactor.raise_through_loop(<object>error)
    elif (<int (*)(Context, str, object) noexcept>log_raised)(context, name, <object>error) < 0:
        report_raised(context.reactor, "what an accessor raised")
    Py_DECREF(<object>error)


cdef int log_raised(Context context, str name, object error) except -1:
    context.reactor.log(context.log, logging.ERROR, "plugin %s: %s raised", (context.name, name), error)
    return 0


# ------------------------------------------------------------------------------------------------------------- Accessors

cdef object call_accessor(Access *access, str name, tuple values):
    cdef Message message = <Message>slot_of(access.handle).object
    return getattr(accessors_of(type(message)), name)(message, *values)


cdef int ask_flag(Access *access, str name) except -1:
    access.number = call_accessor(access, name, ()) is True
    return 0


cdef int ask_number(Access *access, str name) except -1:
    value = call_accessor(access, name, ())
    if type(value) is int and -1 <= value < 2**31:
        access.number = value
    return 0


cdef int ask_presence(Access *access, str name) except -1:
    """Whether there is such a thing."""
    access.number = call_accessor(access, name, ()) is not None
    return 0


cdef int ask_text(Access *access, str name) except -1:
    return keep_text(access, call_accessor(access, name, ()))


cdef int ask_size(Access *access, str name) except -1:
    """How many bytes there are."""
    value = call_accessor(access, name, ())
    if isinstance(value, bytes):
        access.size = PyBytes_GET_SIZE(value)
    return 0


cdef int ask_field(Access *access, str name) except -1:
    """The text of what is given by name."""
    cdef str field = copy_of(access).decode("utf-8", "surrogateescape")
    if in_control(slot_of(access.handle), access.handle):  # see pass_value
        return keep_text(access, call_accessor(access, name, (field,)))
    return 0


cdef int ask_email(Access *access, str name) except -1:
    """An address's text: the hook's argument, or that of its message."""
    cdef Message message = <Message>slot_of(access.handle).object
    if message.entry.kind == OF_ADDRESS:
        value = message.args[0] if message.args else None
    else:
        value = call_accessor(access, "recipient" if part_in(access.handle) == RECIPIENT else "envelope", ())
    return keep_text(access, value or None)


cdef int keep_text(Access *access, object value) except -1:
    """What an accessor says, a str, bytes or None, as a C string that is kept as long as the handle."""
    cdef Slot *slot = slot_of(access.handle)
    cdef const char *string
    if isinstance(value, str):
        value = encoded(str.__str__(value))
    if isinstance(value, bytes):
        if type(value) is not bytes:  # nothing may run when it is let go
            value = PyBytes_AS_STRING(value)[:PyBytes_GET_SIZE(value)]
        string = PyBytes_AS_STRING(value)
    elif isinstance(value, str):
        string = PyUnicode_AsUTF8(value)
    else:
        return 0
    if in_control(slot, access.handle):
        keep(slot, value)
        access.text = string
    return 0


cdef object encoded(str value):
    """A str that has surrogates, as bytes: those that stand for bytes that were not UTF-8 become these."""
    try:
        PyUnicode_AsUTF8(value)
        return value
    except UnicodeError:
        pass
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return value.encode("utf-8", "replace")


cdef int ask_reject(Access *access, str name) except -1:
    """Whether the message could be rejected; where that raises, it could not."""
    cdef str text = copy_of(access).decode("utf-8", "surrogateescape")
    if in_control(slot_of(access.handle), access.handle):
        code, access.number = access.number, 0
        access.number = call_accessor(access, name, (code, text)) is True
    return 0


cdef int pass_flag(Access *access, str name) except -1:
    call_accessor(access, name, (access.number != 0,))
    return 0


cdef int pass_bytes(Access *access, str name) except -1:
    return pass_value(access, name, copy_of(access))


cdef int pass_text(Access *access, str name) except -1:
    value = copy_of(access)
    return pass_value(access, name, None if value is None else value.decode("utf-8", "surrogateescape"))


cdef int pass_field(Access *access, str name) except -1:
    """A name, and a text, to which `pointer` points."""
    cdef str field = copy_of(access).decode("utf-8", "surrogateescape")
    cdef str value = (<bytes><const char *>access.pointer).decode("utf-8", "surrogateescape")
    if in_control(slot_of(access.handle), access.handle):
        call_accessor(access, name, (field, value))
    return 0


cdef int pass_value(Access *access, str name, object value) except -1:
    if in_control(slot_of(access.handle), access.handle):  # what is copied takes memory, for which garbage may be collected
        access.number = call_accessor(access, name, (value,)) is True
    return 0


cdef bytes copy_of(Access *access):
    if access.given == NULL:
        return None
    if access.size > <size_t>PY_SSIZE_T_MAX:
        raise OverflowError(f"a size of {access.size} bytes")
    return (<const char *>access.given)[:access.size]


# ---------------------------------------------------------------------------------------------------------- Connection data

@cython.final
cdef class Pointer:
    """What a plugin keeps with a connection."""
    cdef void *value


cdef int get_data(Access *access, str name) except -1:
    data = call_accessor(access, name, ())
    if type(data) is dict and in_control(slot_of(access.handle), access.handle):
        pointer = (<dict>data).get(plugin_of(access))
        if type(pointer) is Pointer:
            access.pointer = (<Pointer>pointer).value
    return 0


cdef int set_data(Access *access, str name) except -1:
    cdef Pointer pointer = Pointer.__new__(Pointer)
    pointer.value = access.pointer
    if not in_control(slot_of(access.handle), access.handle):
        return 0
    data = call_accessor(access, name, ())
    if type(data) is dict and in_control(slot_of(access.handle), access.handle):
        (<dict>data)[plugin_of(access)] = pointer
    return 0


cdef object plugin_of(Access *access):
    return (<Context>(<Message>slot_of(access.handle).object).entry.context).plugin


# ---------------------------------------------------------------------------------------------------------------- Config

cdef const char *find_setting(Context context, Slot *slot, const char *key) noexcept:
    """What the plugin's config has for that key, as text that is kept as long as the context; NULL for nothing."""
    cdef const char *found = NULL
    if (<int (*)(Context, Slot *, const char *, const char **) noexcept>look_up_setting)(context, slot, key, &found) < 0:
        function_raised(context, "MQ_config")
    return found


cdef int look_up_setting(Context context, Slot *slot, const char *key, const char **found) except -1:
    cdef str name = key.decode()
    value = context.config.get(name)
    if value is None:
        return 0
    text = encoded(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    cdef dict kept = {}
    if context.handle == NULL:  # it ended while memory was made
        return 0
    if slot.kept == NULL:
        slot.kept = <PyObject *>kept
        Py_INCREF(kept)
    text = (<dict>slot.kept).setdefault(name, text)
    found[0] = PyBytes_AS_STRING(text) if isinstance(text, bytes) else PyUnicode_AsUTF8(text)
    return 0


# --------------------------------------------------------------------------------------------------------------- The loop

cdef void *find_symbol(Context context, const char *name) noexcept:
    """A function of the libuv that made the loop; NULL where it has none of that name."""
    cdef void *found = NULL
    if (<int (*)(Reactor, const char *, void **) noexcept>look_up)(context.reactor, name, &found) < 0:
        function_raised(context, "MQ_uvSymbol")
    return found


cdef int look_up(Reactor reactor, const char *name, void **found) except -1:
    cdef bytes path = os.fsencode(reactor.library.path)
    cdef void *module = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    if module != NULL:
        found[0] = dlsym(module, name)
    return 0


cdef void log_unwatched(Context context, int fd, int error) noexcept:
    if (<int (*)(Context, int, int) noexcept>try_log_unwatched)(context, fd, error) < 0:
        function_raised(context, "MQ_ioWatch")


cdef int try_log_unwatched(Context context, int fd, int error) except -1:
    context.reactor.log(
        context.log, logging.WARNING, "plugin %s: MQ_ioWatch: %s", (context.name, cannot_watch(fd, error)), None)
    return 0


seal(Pointer)
