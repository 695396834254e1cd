# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""The extra arguments of native hooks, as C has them: the message keeps what they point into."""

from cpython.object cimport PyObject
from libc.stddef cimport size_t

from .._message cimport Message

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    bint PyBytes_Check(PyObject *) nogil
    char *PyBytes_AS_STRING(PyObject *) nogil
    Py_ssize_t PyBytes_GET_SIZE(PyObject *) nogil
    bint PyUnicode_Check(PyObject *) nogil
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *) nogil
    void *PyUnicode_DATA(PyObject *) nogil
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *) nogil
    Py_ssize_t PyTuple_GET_SIZE(PyObject *) nogil
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t) nogil
    PyObject *Py_None


cdef int take_arguments(Message message, Arguments *arguments) except -1:
    if message.entry.kind > OF_ADDRESS:
        arguments.first = bytes_of(message, 0, &arguments.first_size)
    if message.entry.kind == OF_LOGIN:
        arguments.second = bytes_of(message, 1, &arguments.second_size)
    return 0


cdef bint find_kept(PyObject *values, int kind, Arguments *arguments) noexcept nogil:
    """The hook's arguments as C has them, which the message keeps; False when they are not to be had without the GIL."""
    if values == Py_None or PyTuple_GET_SIZE(values) < (2 if kind == OF_LOGIN else 1):
        return False
    return (find_bytes(PyTuple_GET_ITEM(values, 0), &arguments.first, &arguments.first_size)
            and (kind != OF_LOGIN or find_bytes(PyTuple_GET_ITEM(values, 1), &arguments.second, &arguments.second_size)))


cdef bint find_bytes(PyObject *value, const char **text, size_t *size) noexcept nogil:
    if PyBytes_Check(value):
        text[0] = PyBytes_AS_STRING(value)
        size[0] = PyBytes_GET_SIZE(value)
    elif PyUnicode_Check(value) and PyUnicode_IS_COMPACT_ASCII(value):
        text[0] = <const char *>PyUnicode_DATA(value)
        size[0] = PyUnicode_GET_LENGTH(value)
    elif value == Py_None:
        text[0] = NULL
        size[0] = 0
    else:
        return False
    return True


cdef const char *bytes_of(Message message, Py_ssize_t number, size_t *size) except? NULL:
    """An extra argument of the hook, where that may need the GIL: a str of any kind as UTF-8, which the str keeps."""
    cdef Py_ssize_t length = 0
    cdef const char *text = NULL
    if message.args is None or len(message.args) <= number:
        raise TypeError(f"native hooks of {<str>message.last_hook} need {number + 1} arguments, as MailerQ has them")
    argument = message.args[number]
    if find_bytes(<PyObject *>argument, &text, size):
        return text
    if not isinstance(argument, str):
        raise TypeError(f"native hooks take bytes and str for arguments, not {type(argument).__name__}")
    text = PyUnicode_AsUTF8AndSize(argument, &length)
    size[0] = length
    return text
