# Lines that a client sends.

from libc.string cimport strlen

cdef extern from "Python.h":
    int PyOS_strnicmp(const char *one, const char *other, Py_ssize_t size) noexcept

cdef inline bint says(const char *line, const char *verb) noexcept:
    """Whether this is the verb of a line."""
    cdef size_t size = strlen(verb)
    return PyOS_strnicmp(line, verb, size) == 0 and (line[size] == 0 or line[size] == c" ")


cdef str decode(const char *text, Py_ssize_t size, bint lenient)
cdef bint may_come_before_tls(const char *line) noexcept
cdef int without_argument(str line) except -1
cdef str argument_of(str line)
cdef str plain_address(str line, const char *begin, Py_ssize_t at)
