from libc.stdint cimport uint8_t

cdef class Insert:
    cdef Py_ssize_t at              # octets of the buffer before it
    cdef bytes body
    cdef Py_ssize_t begin           # the part of the body that it is
    cdef Py_ssize_t size

cdef class Output:
    cdef bytes buffer               # nobody else has it
    cdef Py_ssize_t used
    cdef Py_ssize_t usual           # octets that a buffer begins with
    cdef list inserts               # Insert, in their order

    cdef uint8_t *room(self, Py_ssize_t size) except NULL
    cdef int put_frame(self, unsigned int channel, bytes payload) except -1
    cdef list take(self)
    cdef list take_between(self)
