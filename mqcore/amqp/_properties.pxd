from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    MARK_SIZE = 22          # a header of a message that is published

cdef Py_ssize_t find_headers(const uint8_t *p, Py_ssize_t size) noexcept
cdef uint8_t *put_marked(uint8_t *to, const uint8_t *p, Py_ssize_t size, Py_ssize_t headers, uint64_t tag) noexcept
cdef Py_ssize_t marked_size(const uint8_t *p, Py_ssize_t size) noexcept
cdef uint64_t find_mark(bytes header) except? 0
