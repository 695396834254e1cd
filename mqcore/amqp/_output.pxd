from libc.stdint cimport uint8_t

cdef class Output:
    cdef bytes buffer               # nobody else has it
    cdef Py_ssize_t used
    cdef Py_ssize_t usual           # octets that a buffer begins with

    cdef uint8_t *room(self, Py_ssize_t size) except NULL
    cdef int put_frame(self, unsigned int channel, bytes payload) except -1
    cdef bytes take(self)
