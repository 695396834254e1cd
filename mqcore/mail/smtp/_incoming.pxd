# One message as it comes in by SMTP.

cdef class Incoming:
    cdef Py_ssize_t max_size
    cdef Py_ssize_t max_line
    cdef bytearray text
    cdef Py_ssize_t discarded
    cdef readonly str fault
    cdef readonly Py_ssize_t size

    cdef Py_ssize_t collect(self, const char *data, Py_ssize_t size) except -1
    cdef int discard(self) except -1
    cpdef bytes finish(self)
