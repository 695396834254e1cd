"""Text with places for numbers, which is filled in again and again: a scrape has thousands of them, on the loop that moves
the mail."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcpy, strlen

cdef extern from "Python.h":
    """
    #include <stdio.h>
    """
    int Py_DTSF_ADD_DOT_0
    char *PyOS_double_to_string(double number, char format, int precision, int flags, int *type) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

cdef enum:
    LONGEST = 32  # characters of a number


@cython.final
cdef class Template:
    """`pieces` of text, behind each of which a number follows."""
    cdef bytes text                 # the pieces, one behind the other
    cdef Py_ssize_t *sizes
    cdef char *buffer               # for all of it, kept so that its memory is there
    cdef readonly Py_ssize_t count

    def __cinit__(self, list pieces not None):
        cdef Py_ssize_t index
        cdef tuple encoded = tuple(map(str.encode, pieces))
        cdef Py_ssize_t count = len(encoded)
        self.text = b"".join(encoded)
        self.sizes = <Py_ssize_t *>PyMem_Malloc((count + 1) * sizeof(Py_ssize_t))
        self.buffer = <char *>PyMem_Malloc(PyBytes_GET_SIZE(self.text) + count * (LONGEST + 1) + 1)
        if self.sizes == NULL or self.buffer == NULL:
            raise MemoryError()
        for index in range(count):
            self.sizes[index] = PyBytes_GET_SIZE(<bytes>encoded[index])
        self.count = count

    def __dealloc__(self):
        PyMem_Free(self.sizes)
        PyMem_Free(self.buffer)

    def fill(self, numbers not None):
        """The text with these numbers, each an int or a float, and a line end behind each."""
        cdef tuple all = tuple(numbers)
        cdef Py_ssize_t index
        if len(all) != self.count:
            raise ValueError(f"there are {self.count} places for numbers, not {len(all)}")
        cdef char *end = self.buffer
        cdef const char *text = PyBytes_AS_STRING(self.text)
        for index in range(self.count):
            memcpy(end, text, self.sizes[index])
            end += self.sizes[index]
            text += self.sizes[index]
            end += write_number(end, all[index])
            end[0] = c"\n"
            end += 1
        return <bytes>self.buffer[: end - self.buffer]


cdef Py_ssize_t write_number(char *to, object number) except -1:
    """How many characters that are, LONGEST at most."""
    if type(number) is float:
        return write_float(to, number)
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow:
        return write_float(to, float(number))
    return write_int(to, value)


cdef Py_ssize_t write_float(char *to, double number) except -1:
    if number == 0.0:
        to[0] = c"0"
        return 1
    cdef char *text = PyOS_double_to_string(number, c"r", 0, Py_DTSF_ADD_DOT_0, NULL)
    cdef size_t size = strlen(text)
    memcpy(to, text, size)
    PyMem_Free(text)
    return size


cdef Py_ssize_t write_int(char *to, long long number) noexcept:
    cdef char[LONGEST] digits
    cdef int at = LONGEST
    cdef Py_ssize_t size = 0
    cdef unsigned long long rest = number
    if number < 0:
        to[0] = c"-"
        size = 1
        rest = 0 - rest
    while True:
        at -= 1
        digits[at] = <char>(c"0" + rest % 10)
        rest //= 10
        if rest == 0:
            break
    memcpy(to + size, digits + at, LONGEST - at)
    return size + LONGEST - at
