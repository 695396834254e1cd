"""Names of what clients send: as no other of any run."""

import os

cimport cython
from libc.string cimport memcpy

cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 greatest)
    unsigned char *PyUnicode_1BYTE_DATA(str text) noexcept

cdef const char *DIGITS = b"0123456789abcdef"


@cython.final
cdef class Names:
    """Names mails, each as no other of any run."""

    def __cinit__(self):
        self.name_of_run = os.urandom(8).hex()

    cdef unsigned long long take(self, Py_ssize_t count) noexcept:
        """The first of so many numbers."""
        self.count += count
        return self.count - count + 1

    cdef str name(self, unsigned long long number):
        return numbered(self.name_of_run, number)


cdef str numbered(str begin, unsigned long long number):
    """These 16 characters, and 16 hex digits."""
    cdef str name = PyUnicode_New(32, 127)
    cdef unsigned char *text = PyUnicode_1BYTE_DATA(name)
    cdef int i
    memcpy(text, PyUnicode_1BYTE_DATA(begin), 16)
    for i in range(31, 15, -1):
        text[i] = DIGITS[number & 15]
        number >>= 4
    return name
