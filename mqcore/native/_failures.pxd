# Steps that native plugins fail, and why.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from .._message cimport TO_FAIL, Drops, Message
from ._slots cimport GIVEN, Slot, generation_of, get_number, state_of
from ..loop._atomic cimport get, load

cdef inline bint is_failing(Slot *slot) noexcept nogil:
    """Whether the step fails as soon as the plugin that has it now is done with it."""
    return get_number(&slot.failing) == generation_of(get(&slot.word)) + 1

cdef inline int early_decision(Slot *slot) noexcept nogil:
    """What a plugin that is called has given back already; 0 or less if nothing."""
    return TO_FAIL if is_failing(slot) else state_of(load(&slot.word)) - GIVEN

cdef void note_reason(Slot *slot, uint32_t generation, const char *text) noexcept nogil
cdef void fail_when_done(Slot *slot, int code, const char *text) noexcept nogil
cdef void fail(Message message, Slot *slot, Drops *drops) noexcept
cdef void forget_reasons(Slot *slot) noexcept nogil
