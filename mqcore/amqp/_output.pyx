"""Frames that wait to be sent: one buffer for all that is said in a turn of the loop, and large bodies as they are."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ._wire cimport FRAME_END, FRAME_EXTRA, METHOD, put8, put_frame_head

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **text, Py_ssize_t size) except -1

cdef enum:
    USUAL = 1 << 16
    MOST = 1 << 20          # octets of a buffer before anything is in it
    LITTLE = 1 << 12        # octets that are copied; a buffer with more is given away


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Insert:
    """A part of a body that is sent from where it is, between two octets of the buffer."""


@cython.final
cdef class Output:

    def __cinit__(self):
        self.buffer = b""
        self.usual = USUAL
        self.inserts = []

    cdef uint8_t *room(self, Py_ssize_t size) except NULL:
        """Where so many octets can be written. Nothing may be called between this and the change of `used`: any object that is
        made may run a finalizer, which may publish."""
        cdef Py_ssize_t capacity = PyBytes_GET_SIZE(self.buffer)
        cdef bytes larger
        if capacity - self.used < size:
            larger = PyBytes_FromStringAndSize(NULL, max(2 * capacity, self.used + size, self.usual))
            memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(self.buffer), self.used)
            self.buffer = larger
        return <uint8_t *>PyBytes_AS_STRING(self.buffer) + self.used

    cdef int put_frame(self, unsigned int channel, bytes payload) except -1:
        """One with a method."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
        cdef uint8_t *p = self.room(size + FRAME_EXTRA)
        p = put_frame_head(p, METHOD, channel, size)
        memcpy(p, PyBytes_AS_STRING(payload), size)
        put8(p + size, FRAME_END)
        self.used += size + FRAME_EXTRA
        return 0

    cdef list take(self):
        """All that was written, as buffers that follow each other."""
        cdef Py_ssize_t size = self.used
        cdef bytes taken
        cdef PyObject *whole
        if self.inserts:
            return self.take_between()
        if size <= LITTLE:
            taken = PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.buffer), size)
            self.used = 0
            return [taken] if size else []
        taken = self.buffer
        self.buffer = b""
        self.usual = min(PyBytes_GET_SIZE(taken), MOST)  # the next will be as large
        self.used = 0
        whole = <PyObject *>taken
        Py_INCREF(taken)
        taken = None
        _PyBytes_Resize(&whole, size)
        taken = <bytes>whole
        Py_DECREF(taken)
        return [taken]

    cdef list take_between(self):
        """Likewise, where there are inserts. Objects are made here, so what is there is let go before: see `room`."""
        cdef bytes buffer = self.buffer
        cdef list inserts = self.inserts
        cdef list parts = []
        cdef const char *from_here = PyBytes_AS_STRING(buffer)
        cdef Py_ssize_t size = self.used, at = 0
        cdef Insert insert
        self.buffer = b""
        self.inserts = []
        self.used = 0
        for insert in inserts:
            parts.append(PyBytes_FromStringAndSize(from_here + at, insert.at - at))
            at = insert.at
            if insert.size == PyBytes_GET_SIZE(insert.body):
                parts.append(insert.body)
            else:
                parts.append(memoryview(insert.body)[insert.begin:insert.begin + insert.size])
        parts.append(PyBytes_FromStringAndSize(from_here + at, size - at))
        return parts
