# cython: nonecheck=False
# (What is called for a step has a message.)
"""Steps that native plugins fail, by MQ_fail, or by MQ_reject where a message cannot be rejected.

Why they do is a text that is given without the GIL, on any thread, and becomes an exception when the dispatcher ends the
step. Until then it waits at the slot, with the generation that it is about: of two threads that give back at once, one comes
too late, and its text is of no use.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from .._dispatch cimport Runner
from .._message cimport Drops, Message
from ..loop._atomic cimport get, swap_pointer
from ..loop._call cimport take_error
from ._slots cimport Reason, Slot, generation_of, handle_of, set_number, table_of

from ..errors import MqError

cdef extern from *:
    # Of loop/_atomic.pxd.
    Reason *load_reason "mqcore_load"(Reason **) noexcept nogil
    Reason *exchange_reason "mqcore_exchange"(Reason **, Reason *) noexcept nogil

cdef extern from "Python.h":
    int PyGC_Disable() noexcept
    int PyGC_Enable() noexcept

cdef enum:
    CODE_SIZE = 16      # of a code and a blank


cdef void note_reason(Slot *slot, uint32_t generation, const char *text) noexcept nogil:
    """Why the step fails, if it does. Any thread; where there is no memory, nobody learns why."""
    cdef size_t size = strlen(text) + 1
    cdef Reason *reason = <Reason *>malloc(sizeof(Reason) + size)
    if reason == NULL:
        return
    reason.generation = generation
    memcpy(<char *>reason + sizeof(Reason), text, size)
    while True:
        reason.next = load_reason(&slot.reasons)
        if swap_pointer(&slot.reasons, reason.next, reason):
            break


cdef void fail_when_done(Slot *slot, int code, const char *text) noexcept nogil:
    """Let the step fail as soon as the plugin that has it now, in a hook or not, is done with it. The dispatcher's thread."""
    cdef size_t size = CODE_SIZE + strlen(text)
    cdef char *both = <char *>malloc(size)
    if both != NULL:
        snprintf(both, size, b"%d %s", code, text)
        note_reason(slot, generation_of(get(&slot.word)), both)
        free(both)
    set_number(&slot.failing, generation_of(get(&slot.word)) + 1)
    (<Runner>table_of(handle_of(slot)).owner).holds.lists.fast_path_off = True  # so that its hook is not passed over


cdef void fail(Message message, Slot *slot, Drops *drops) noexcept:
    """The step fails, for what was noted. Nobody's code runs in here."""
    cdef bint collects = PyGC_Disable()
    cdef PyObject *error = (<PyObject *(*)(Message, Slot *) noexcept>make_error)(message, slot)
    if error == NULL:
        error = take_error()
    if collects:
        PyGC_Enable()
    message.fail(<object>error, drops)
    Py_DECREF(<object>error)
    forget_reasons(slot)


cdef PyObject *make_error(Message message, Slot *slot) except NULL:
    cdef uint32_t generation = generation_of(get(&slot.word))
    cdef Reason *reason = load_reason(&slot.reasons)
    while reason != NULL and reason.generation != generation:
        reason = reason.next
    if reason == NULL:
        error = MqError(f"plugin {<str>message.entry.plugin} failed the step, and there was no memory for why")
    else:
        error = MqError((<const char *>reason + sizeof(Reason)).decode("utf-8", "replace"))
    Py_INCREF(error)
    return <PyObject *>error


cdef void forget_reasons(Slot *slot) noexcept nogil:
    cdef Reason *reason = NULL
    if load_reason(&slot.reasons) != NULL:  # as it is NULL nearly always
        reason = exchange_reason(&slot.reasons, NULL)
    cdef Reason *next
    while reason != NULL:
        next = reason.next
        free(reason)
        reason = next
