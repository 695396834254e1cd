"""The numbers that a run counts, in memory that may be shared: so another process knows them when this one is killed."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

SIZE = ALL * sizeof(uint64_t)
"""Octets of a row."""


@cython.no_gc_clear  # which would let go the memory while it is in use
cdef class Row:
    """One number for each `Cell`, and 0 at first, unless `memory` says otherwise: an mmap of `SIZE` octets or more, where they
    are kept. (Not a memoryview, which the collector of garbage may take while it is in use.) Compiled code adds to them where
    they lie.

    There is no lock: one process writes, and others see each number as it is or was a moment ago.
    """

    def __cinit__(self, memory=None, **values):
        self.numbers = self.own
        if memory is None:
            return
        PyObject_GetBuffer(memory, &self.shared, PyBUF_WRITABLE)
        self.is_shared = True
        if self.shared.len < <Py_ssize_t>(ALL * sizeof(uint64_t)):
            raise ValueError(f"a row has {SIZE} octets, not {self.shared.len}")
        self.numbers = <uint64_t *>self.shared.buf

    def __dealloc__(self):
        if self.is_shared:
            PyBuffer_Release(&self.shared)


@cython.final
cdef class Cell:
    """An attribute of a class that is a `Row`: one of its numbers."""

    cdef int place

    def __cinit__(self, int place):
        if not 0 <= place < ALL:
            raise ValueError(f"a row has no number {place}")
        self.place = place

    def __get__(self, instance, owner):
        return self if instance is None else (<Row?>instance).numbers[self.place]

    def __set__(self, instance, value):
        (<Row?>instance).numbers[self.place] = value
