"""What native plugins have to say (MQ_log), and what has to be said of them: a misuse of a function.

A misuse may happen on any thread, in code that holds any lock, so it is only noted, without the GIL: the dispatcher logs it
and counts it in its next turn. Only where no dispatcher is open is it logged at once.
"""

import logging

from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from ._context cimport Context
from ._handles cimport (
    CONTEXT, GENERATION, STEP, Note, Slot, Table, add, any_open_table, generation_in, generation_of, is_inside, live_slot, load,
    push, slot_of, table_inside, table_of, take_all)
from ._loop cimport Loop, start_idle, uv_of
from ._message cimport Message, Tally

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

cdef dict LEVELS = {2: logging.CRITICAL, 3: logging.ERROR, 4: logging.WARNING, 6: logging.INFO, 7: logging.DEBUG}
cdef dict loggers = {}  # where a plugin's file is in memory -> its logger


cdef void set_living(int change) noexcept nogil:
    global living
    living += change


cdef void know_library(void *address, str plugin):
    """Code at this address is this plugin's."""
    loggers[<size_t>base_of(address)] = logging.getLogger(f"mqcore.plugins.{plugin}")


# ---------------------------------------------------------------------------------------------------------------- Noting

cdef void refuse(void *handle, const char *what) noexcept nogil:
    """A function was called with a handle that is not valid for it, or where it may not be called. Any thread."""
    cdef Table *table = table_inside()
    cdef Slot *slot = slot_of(handle)
    cdef void *context = caller_in(table)
    cdef PyObject *hook = NULL
    if table == NULL:
        table = table_of(handle)
    if slot != NULL and slot.kind == STEP and generation_of(load(&slot.word)) - generation_in(handle) <= GENERATION:
        hook = slot.hook  # nothing came after it
        if context == NULL:
            context = slot.owner
    add_note(table, MISUSE, what, context, NULL, hook)


cdef void refuse_late(Table *table, Slot *slot) noexcept nogil:
    """The step of a message ended between its being given back and its going on."""
    add_note(table, MISUSE, b"gave back a message in the instant in which its step was ended", slot.owner, NULL, slot.hook)


cdef void *caller_in(Table *table) noexcept nogil:
    """The MQ_Context of the plugin that this thread is in."""
    if table == NULL:
        return NULL
    if table.current != NULL or table.message == NULL:
        return table.current
    return (<Message>table.message).entry.handle


cdef void write_log(int priority, const char *text, void *caller) noexcept nogil:
    """MQ_log, called from the code at `caller`. Any thread."""
    cdef Table *table = table_inside()
    cdef void *context = caller_in(table)
    cdef void *base = base_of(caller)
    if priority == MISUSE:
        priority = -1
    if living or table != NULL:
        with gil:
            log_now(priority, text, context, base, NULL)
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
                log_now(priority, text, context, base, hook)
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
        if is_inside(table):
            start_idle(&(<Loop>table.owner).state)
        else:
            pthread_mutex_lock(&table.lock)
            if table.open:
                (<Loop>table.owner).state.uv.async_send(uv_of((<Loop>table.owner).waker))  # cannot fail: open
            pthread_mutex_unlock(&table.lock)


# --------------------------------------------------------------------------------------------------------------- Logging

cdef void log_notes(Table *table) noexcept:
    """In a turn: log what was noted."""
    cdef Note *note = <Note *>take_all(&table.notes)
    cdef Note *next
    while note != NULL:
        next = note.next
        add(&table.note_count, -1)
        log_now(note.priority, note.text, note.context, note.base, note.hook)
        free(note)
        note = next


cdef void log_now(int priority, const char *text, void *handle, void *base, PyObject *hook) noexcept:
    cdef Slot *slot = live_slot(handle, CONTEXT)
    cdef Context context = None if slot == NULL else <Context>slot.object
    cdef Tally tally
    try:
        logger = loggers.get(<size_t>base) if context is None else context.log
        line = text.decode("utf-8", "replace")
        if priority == MISUSE:
            if context is not None:
                tally = context.tally_of("" if hook == NULL else <str>hook)
                tally.counters.refused += 1
            line = f"{'a native plugin' if context is None else 'plugin ' + context.name} {line}: ignored"
        elif priority not in LEVELS:
            line = f"(invalid priority) {line}"
        level = logging.WARNING if priority == MISUSE else LEVELS.get(priority, logging.INFO)
        logger = logger or logging.getLogger("mqcore.plugins")
        if context is None:
            logger.log(level, "%s", line)
        else:
            context.owner.tell(logger, level, "%s", (line,), None)
    except BaseException:
        logging.getLogger("mqcore").error("could not log what a native plugin said", exc_info=True)
