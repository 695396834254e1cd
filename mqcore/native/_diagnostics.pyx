# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""What native plugins have to say (MQ_log), and what has to be said of them: a misuse of a function.

A misuse may happen on any thread, in code that holds any lock, so it is only noted, without the GIL: the dispatcher logs it
and counts it in its next turn. Only where no dispatcher is open is it logged at once.
"""

import logging

from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from ..loop._atomic cimport add
from .._context cimport Context
from .._dispatch cimport Dispatcher
from ._slots cimport (
    CONTEXT, STEP, Note, Slot, Table, any_open_table, generation_in, is_inside, live_slot, push, slot_of, table_inside,
    table_of, take_all)
from ..loop._reactor cimport request_nogil_tick, uv_of
from .._message cimport CounterRow, Entry, Message

cdef extern from *:
    """
    #include <dlfcn.h>

    /* Whether this thread is in a function of a plugin's life, called by Python. */
    static __thread int mqcore_living;

    static inline void *mqcore_base(void *address)
    {
        Dl_info info;
        return address != NULL && dladdr(address, &info) ? info.dli_fbase : NULL;
    }
    """
    int living "mqcore_living"
    void *base_of "mqcore_base"(void *address) noexcept nogil

cdef extern from *:
    int pthread_mutex_lock(void *) nogil
    int pthread_mutex_unlock(void *) nogil
    bint Py_IsInitialized() nogil

cdef enum:
    MOST_NOTES = 1_000  # that wait for one dispatcher: beyond, they are dropped
    MISUSE = 0          # a priority

log = logging.getLogger("mqcore")

cdef dict LEVELS = {2: logging.CRITICAL, 3: logging.ERROR, 4: logging.WARNING, 6: logging.INFO, 7: logging.DEBUG}
cdef dict names = {}  # where a plugin's file is in memory -> its name


cdef void set_living(int change) noexcept nogil:
    global living
    living += change


cdef void know_library(void *address, str plugin):
    """Code at this address is this plugin's."""
    names[<size_t>base_of(address)] = plugin


# ---------------------------------------------------------------------------------------------------------------- Noting

cdef void refuse(void *handle, const char *what, void *caller) noexcept nogil:
    """A function was called, by the code at `caller`, with a handle that is not valid for it or where it may not be called. Any
    thread."""
    cdef Table *table = table_inside()
    cdef Slot *slot = slot_of(handle)
    cdef void *context = caller_in(table)
    cdef PyObject *hook = NULL
    if table == NULL:
        table = table_of(handle)
    if slot != NULL and slot.kind == STEP and slot.held == generation_in(handle):
        hook = slot.hook
        if context == NULL:
            context = slot.owner
    add_note(table, MISUSE, what, context, base_of(caller), hook)


cdef void refuse_late(Table *table, Slot *slot) noexcept nogil:
    """The step of a message ended between its being given back and its going on."""
    add_note(table, MISUSE, b"gave back a message in the instant in which its step was ended", slot.owner, NULL, slot.hook)


cdef void *caller_in(Table *table) noexcept nogil:
    """The MQ_Context of the plugin that this thread is in."""
    cdef Entry *entry = NULL
    if table == NULL:
        return NULL
    if table.current != NULL or table.message == NULL:
        return table.current
    entry = (<Message>table.message).entry
    return NULL if entry == NULL else entry.handle  # its step has ended: the thread is between two messages of run_many()


cdef void write_log(int priority, const char *text, void *caller) noexcept nogil:
    """MQ_log, called from the code at `caller`. Any thread."""
    cdef Table *table = table_inside()
    cdef void *context = caller_in(table)
    cdef void *base = base_of(caller)
    if priority == MISUSE:
        priority = -1
    if living or table != NULL:
        with gil:
            log_now(table, priority, text, context, base, NULL)
    else:
        add_note(NULL, priority, text, context, base, NULL)


cdef void add_note(Table *table, int priority, const char *text, void *context, void *base, PyObject *hook) noexcept nogil:
    """Have it logged by the table's dispatcher, or by any other that is open; where there is none, at once."""
    cdef size_t size = strlen(text)
    cdef Note *note
    if table == NULL or not table.open:
        table = any_open_table()
    if table == NULL:
        if Py_IsInitialized():
            with gil:
                log_now(NULL, priority, text, context, base, hook)
        return
    note = <Note *>malloc(sizeof(Note) + size)
    if note == NULL:
        return
    note.priority = priority
    note.context = context
    note.base = base
    note.hook = hook
    memcpy(note.text, text, size + 1)
    if add(&table.note_count, 1) > MOST_NOTES:
        add(&table.note_count, -1)
        free(note)
    elif push(&table.notes, note):
        wake(table)


cdef void wake(Table *table) noexcept nogil:
    """Ask for a turn, which looks itself whether it needs the GIL. Any thread, without it."""
    if is_inside(table):
        request_nogil_tick(&(<Dispatcher>table.owner).reactor.state)
        return
    pthread_mutex_lock(&table.lock)
    if table.open:
        (<Dispatcher>table.owner).reactor.state.uv.async_send(uv_of((<Dispatcher>table.owner).reactor.waker))  # cannot fail: open
    pthread_mutex_unlock(&table.lock)


# --------------------------------------------------------------------------------------------------------------- Logging

cdef void log_notes(Table *table) noexcept:
    """In a turn: log what was noted."""
    cdef Note *note = <Note *>take_all(&table.notes)
    cdef Note *next
    while note != NULL:
        next = note.next
        add(&table.note_count, -1)
        log_now(table, note.priority, note.text, note.context, note.base, note.hook)
        free(note)
        note = next


cdef void log_now(Table *table, int priority, const char *text, void *handle, void *base, PyObject *hook) noexcept:
    cdef Context context
    cdef CounterRow row
    try:
        context = context_of(table, handle, base)
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
    except BaseException as error:
        if context is None:
            log.error("could not log what a native plugin said", exc_info=True)
        else:
            context.reactor.report(error, "a handler of logging")


cdef Context context_of(Table *table, void *handle, void *base):
    """The plugin's Context on the dispatcher of the table, by its handle or by where its code is; None when it has none."""
    cdef Slot *slot = live_slot(handle, CONTEXT)
    if slot != NULL:
        return <Context>slot.object
    name = names.get(<size_t>base)
    if name is not None and table != NULL and table.open:
        for context in (<Dispatcher>table.owner).active.contexts.values():
            if (<Context>context).name == name:
                return context
    return None
