from libc.stdint cimport uint8_t, uint64_t

cdef class Outcome:
    cdef readonly unsigned int channel
    cdef readonly uint64_t tag
    cdef readonly str kind
    cdef readonly int code
    cdef readonly str text

cdef class Unconfirmed:
    cdef unsigned int channel
    cdef uint8_t *states            # a ring: of publish n at n modulo its size
    cdef Py_ssize_t capacity
    cdef uint64_t first             # the oldest that is open, or the next one
    cdef uint64_t next
    cdef Py_ssize_t count
    cdef dict reasons               # of those that came back

    cdef int make_room(self) except -1
    cdef uint64_t add(self) noexcept
    cdef int take_back(self, uint64_t tag, int code, str text) except -1
    cdef int confirm(self, uint64_t tag, bint multiple, str kind, list events) except -1
    cdef int end_one(self, uint64_t tag, str kind, list events) except -1
    cdef int end_all(self, list events) except -1
