# Steps that native plugins fail, and why.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from .._message cimport Drops, Message
from ._slots cimport Slot, generation_of, get_number
from ..loop._atomic cimport get

cdef inline bint is_failing(Slot *slot) noexcept nogil:
    """Whether the step fails as soon as the plugin that has it now is done with it."""
    return get_number(&slot.failing) == generation_of(get(&slot.word)) + 1

cdef void note_reason(Slot *slot, uint32_t generation, const char *text) noexcept nogil
cdef void fail_when_done(Slot *slot, int code, const char *text) noexcept nogil
cdef void fail(Message message, Slot *slot, Drops *drops) noexcept
cdef void forget_reasons(Slot *slot) noexcept nogil
