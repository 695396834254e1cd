# The extra arguments of native hooks.

from cpython.object cimport PyObject
from libc.stddef cimport size_t

from .._message cimport Message

cdef enum Signature:
    # Of a hook's C function, in NativeFunction.kind.
    OF_CONNECTION = 0       # (context, connection)
    OF_MESSAGE = 1          # (context, connection, message)
    OF_ADDRESS = 2          # (context, connection, address)
    OF_DATA = 3             # (context, connection, mime, size)
    OF_LOGIN = 4            # (context, connection, login, size, password, size)

cdef extern from *:
    """
    typedef struct {
        const char *first, *second;
        size_t first_size, second_size;
    } mqcore_arguments;
    """
    ctypedef struct Arguments "mqcore_arguments":
        # Of a hook beside its handles, as C has them.
        const char *first
        const char *second
        size_t first_size
        size_t second_size

cdef inline bint find_arguments(PyObject *values, int kind, Arguments *arguments) noexcept nogil:
    """The hook's arguments as C has them; False when they are not to be had without the GIL."""
    return kind <= OF_ADDRESS or find_kept(values, kind, arguments)

cdef bint find_kept(PyObject *values, int kind, Arguments *arguments) noexcept nogil
cdef int take_arguments(Message message, Arguments *arguments) except -1
