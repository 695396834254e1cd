# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""What native plugins have to say (MQ_log), and what has to be said of them: a misuse of a function.

A misuse may happen on any thread, in code that holds any lock, or in a signal handler. So it is only recorded, without the GIL,
locks and memory: the dispatcher logs it and counts it in its next tick. Only where no dispatcher is open is it logged at once.
"""

import logging

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from .._context cimport Context
from .._dispatch cimport Runner
from .._dispatcher cimport Dispatcher
from .._message cimport CounterRow, Entry, Message, report_raised
from ..loop._atomic cimport add
from ..loop._call cimport ends_program, take_error
from ..loop._reactor cimport Portion, Reactor, has_budget, start_portion, uv_of
from ._queue cimport has_any, put, take
from ._slots cimport (
    CONTEXT, MOST_RECORDS, STEP, Record, Slot, Table, any_open_table, begin_use, end_use, free_record, generation_in, get_kind,
    get_number, get_object, get_pointer, is_inside, is_open, live_slot, load_int, slot_of, table_inside, table_of, take_record)

cdef extern from *:
    """
    /* Whether this thread is in a function of a plugin's life, called by Python; and what is to be raised when it returns. */
    static __thread int mqcore_lifecycle_depth;
    static __thread PyObject *mqcore_pending_exit;
    """
    int lifecycle_depth "mqcore_lifecycle_depth"
    PyObject *pending_exit "mqcore_pending_exit"

cdef extern from "Python.h":
    bint Py_IsInitialized() nogil
    void PyErr_Clear() noexcept
    void PySys_WriteStderr(const char *) noexcept

cdef enum:
    MISUSE = 0          # a priority

log = logging.getLogger("mqcore")

cdef dict LEVELS = {2: logging.CRITICAL, 3: logging.ERROR, 4: logging.WARNING, 6: logging.INFO, 7: logging.DEBUG}
cdef int lifecycle_calls = 0   # threads that are in a function of a plugin's life; atomic
cdef dict names = {}  # where a plugin's file is in memory -> its name


cdef void count_lifecycle_call(int change) noexcept nogil:
    global lifecycle_depth
    lifecycle_depth += change
    add(&lifecycle_calls, change)


cdef bint is_any_in_lifecycle_call() noexcept nogil:
    """Whether any thread is in a function of a plugin's life."""
    return load_int(&lifecycle_calls) > 0


cdef int raise_pending_exit() except -1:
    """Raise what has to end the program, and was raised by logging, in a function of a plugin's life that has just returned."""
    global pending_exit
    cdef PyObject *error = pending_exit
    if error == NULL:
        return 0
    pending_exit = NULL
    held = <object>error
    Py_DECREF(held)
    raise held


cdef void know_library(void *address, str plugin) except *:
    """Code at this address is this plugin's."""
    names[<size_t>base_of(address)] = plugin


cdef void forget_library(void *base) noexcept:
    """Other code may be at this address from now on."""
    if (<int (*)(void *) noexcept>try_forget)(base) < 0:
        PyErr_Clear()  # no memory: what that code logs may bear the old name


cdef int try_forget(void *base) except -1:
    names.pop(<size_t>base, None)
    return 0


# --------------------------------------------------------------------------------------------------------------- Recording

cdef void record_misuse_of(void *handle, const char *what, void *caller) noexcept nogil:
    """A function was called, by the code at `caller`, with a handle that is not valid for it or where it may not be called. Any
    thread. A call that is made just as the next hold of that slot begins may be counted for that hold's plugin."""
    cdef Table *table = table_inside()
    cdef Slot *slot = slot_of(handle)
    cdef void *context = caller_in(table)
    cdef PyObject *hook = NULL
    if table == NULL:
        table = table_of(handle)
    if slot != NULL and get_kind(&slot.kind) == STEP and get_number(&slot.held) == generation_in(handle):
        hook = get_object(&slot.hook)
        if context == NULL:
            context = get_pointer(&slot.owner)
    record_misuse(table, what, context, caller, hook)


cdef void record_late(Table *table, Slot *slot) noexcept nogil:
    """The step of a message ended between its being given back and its going on."""
    record_misuse(table, b"gave back a message in the instant in which its step was ended", slot.owner, NULL, slot.hook)


cdef void *caller_in(Table *table) noexcept nogil:
    """The MQ_Context of the plugin that this thread is in."""
    cdef Entry *entry = NULL
    if table == NULL:
        return NULL
    if table.current != NULL or table.message == NULL:
        return table.current
    entry = (<Message>table.message).entry
    return NULL if entry == NULL else entry.handle  # its step has ended: the thread is between two messages of run_many()


cdef bint is_in_another(Table *table, void *context) noexcept nogil:
    cdef void *other
    if not is_inside(table):
        return False
    other = caller_in(table)
    return other != NULL and other != context


cdef void write_log(int priority, const char *text, void *caller) noexcept nogil:
    """MQ_log, called from the code at `caller`. Any thread."""
    cdef Table *table = table_inside()
    cdef void *context = caller_in(table)
    if priority == MISUSE:
        priority = -1
    if lifecycle_depth or table != NULL or any_open_table() == NULL:
        log_with_gil(table, priority, text, context, caller, NULL)
    else:
        record_line(any_open_table(), priority, text, caller)


cdef void record_misuse(Table *table, const char *what, void *context, void *caller, PyObject *hook) noexcept nogil:
    """Have it logged by the table's dispatcher, or by any other that is open; where there is none, at once. `what` is kept."""
    cdef Record *record
    if table == NULL or not is_open(table):
        table = any_open_table()
    if table == NULL:
        log_with_gil(NULL, MISUSE, what, context, caller, hook)
        return
    record = take_record(table)
    if record == NULL:
        return
    record.priority = MISUSE
    record.context = context
    record.caller = caller
    record.hook = hook
    record.text = what
    if put(&table.records, record):
        wake(table)


cdef void record_line(Table *table, int priority, const char *text, void *caller) noexcept nogil:
    """The same for a line that another thread logs, which is copied."""
    cdef size_t size = strlen(text) + 1
    cdef Record *record
    cdef char *copy
    if table == NULL or add(&table.record_count, 1) > MOST_RECORDS:
        record = NULL
    else:
        record = <Record *>malloc(sizeof(Record) + size)
    if record == NULL:
        if table != NULL:
            add(&table.record_count, -1)
        return
    copy = <char *>record + sizeof(Record)
    memcpy(copy, text, size)
    record.priority = priority
    record.context = NULL
    record.caller = caller
    record.hook = NULL
    record.text = copy
    if put(&table.records, record):
        wake(table)


cdef void wake(Table *table) noexcept nogil:
    """Ask for a tick, which looks itself whether it needs the GIL. Any thread, and signal handlers; without the GIL."""
    cdef int before
    if is_inside(table):
        return  # leave() looks
    if begin_use(table):
        before = errno
        # It cannot fail: the handle is open.
        (<Runner>table.owner).reactor.state.uv.async_send(uv_of((<Runner>table.owner).reactor.waker))
        (&errno)[0] = before
        end_use(table)


# --------------------------------------------------------------------------------------------------------------- Logging

cdef bint log_records(Runner runner, Table *table) noexcept:
    """Log what was recorded, for a while; or all, where the dispatcher closes. Whether there is more."""
    cdef Portion portion = start_portion(runner.reactor.state.uv)
    cdef bint all = runner.closed
    cdef Record *record
    while has_any(&table.records) and (all or not runner.closed and has_budget(&portion)):
        record = <Record *>take(&table.records)
        if record == NULL:
            break
        log_now(table, record.priority, record.text, record.context, record.caller, record.hook)
        if record.priority == MISUSE:
            free_record(table, record)
        else:
            add(&table.record_count, -1)
            free(record)
    return not runner.closed and has_any(&table.records)


cdef void log_with_gil(
        Table *table, int priority, const char *text, void *context, void *caller, PyObject *hook) noexcept nogil:
    if Py_IsInitialized():
        with gil:
            log_now(table, priority, text, context, caller, hook)


cdef void log_now(Table *table, int priority, const char *text, void *handle, void *caller, PyObject *hook) noexcept:
    """Log it. Whatever handlers of logging raise ends here, or leaves through the loop."""
    cdef PyObject *reactor = NULL
    if (<int (*)(Table *, int, const char *, void *, void *, PyObject *, PyObject **) noexcept>try_log)(
            table, priority, text, handle, base_of(caller), hook, &reactor) < 0:
        if reactor != NULL:
            report_raised(<Reactor>reactor, "a handler of logging")
        else:
            keep_exit(take_error())
    Py_XDECREF(reactor)


cdef void keep_exit(PyObject *error) noexcept:
    """There is no loop: what ends the program is raised by the function of a plugin's life that this thread is in, if any."""
    global pending_exit
    if lifecycle_depth and pending_exit == NULL and ends_program(<object>error):
        pending_exit = error
        return
    PySys_WriteStderr(b"mqcore could not log what a native plugin said\n")
    Py_DECREF(<object>error)


cdef int try_log(
        Table *table, int priority, const char *text, void *handle, void *base, PyObject *hook, PyObject **reactor) except -1:
    """`reactor`: where errors go, a new reference; or NULL."""
    cdef Context context
    cdef CounterRow row
    if table != NULL and is_open(table):
        refer(reactor, (<Runner>table.owner).reactor)
    context = context_of(table, handle, base)
    if context is not None and reactor[0] == NULL:
        refer(reactor, context.reactor)
    name = names.get(<size_t>base) if context is None else context.name
    line = text.decode("utf-8", "replace")
    level = LEVELS.get(priority, logging.INFO)
    if priority == MISUSE:
        if context is not None:
            row = context.row_of("" if hook == NULL else <str>hook)
            row.counters.refused += 1
        line = f"{'a native plugin' if name is None else 'plugin ' + name} {line}: ignored"
        level = logging.WARNING
    elif priority not in LEVELS:
        line = f"(invalid priority) {line}"
    logging.getLogger("mqcore.plugins" if name is None else f"mqcore.plugins.{name}").log(level, "%s", line)
    return 0


cdef void refer(PyObject **place, object reactor) noexcept:
    Py_INCREF(reactor)
    place[0] = <PyObject *>reactor


cdef Context context_of(Table *table, void *handle, void *base):
    """The plugin's Context on the dispatcher of the table, by its handle or by where its code is; None when it has none."""
    cdef Slot *slot = live_slot(handle, CONTEXT)
    if slot != NULL:
        return <Context>slot.object
    name = names.get(<size_t>base)
    if name is not None and table != NULL and is_open(table):
        for context in list((<Dispatcher>(<Runner>table.owner).reactor.dispatcher).active.contexts.values()):
            if (<Context>context).name == name:
                return context
    return None
