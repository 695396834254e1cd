from libc.stdint cimport int32_t, uint64_t

from ._output cimport Output

cdef struct Slot:
    uint64_t tag                    # 0: nobody has it
    int32_t before
    int32_t after
    bint acked

cdef class Unsettled:
    cdef Slot *slots
    cdef int32_t *acked             # slots whose ack was not sent yet
    cdef Py_ssize_t capacity
    cdef Py_ssize_t acks
    cdef Py_ssize_t count
    cdef int32_t first
    cdef int32_t last
    cdef int32_t free

    cdef int grow(self) except -1
    cdef int32_t add(self, uint64_t tag) except -1
    cdef bint is_open(self, int32_t slot, uint64_t tag) noexcept
    cdef bint ack(self, int32_t slot, uint64_t tag) noexcept
    cdef bint remove(self, int32_t slot, uint64_t tag) noexcept
    cdef int drop(self, int32_t slot) noexcept
    cdef int write_acks(self, unsigned int channel, Output out) except -1
