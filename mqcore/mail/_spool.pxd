# What waits for the sink, in little memory.

cdef class Memory:
    cdef readonly Py_ssize_t used   # octets
    cdef readonly int processes     # that share what there may be

cdef class Spooled:
    cdef bytes base                 # another mail's bytes
    cdef Py_ssize_t head            # how many of those it begins with
    cdef Py_ssize_t tail            # and ends with
    cdef bytes middle               # what is between; None: it is in the file
    cdef Py_ssize_t size            # of that
    cdef Memory memory
    cdef SpoolFile file
    cdef Py_ssize_t at

    cdef bytes read(self)
    cdef bytes part(self, Py_ssize_t start, Py_ssize_t stop)
    cdef Py_ssize_t length(self) noexcept
    cdef tuple key(self)

cdef class SpoolFile:
    cdef int fd
    cdef Py_ssize_t size

    cdef Py_ssize_t append(self, bytes data) except -1
    cdef bytes read(self, Py_ssize_t at, Py_ssize_t size)

cdef class Spool:
    cdef Memory memory
    cdef bytes base
    cdef SpoolFile file

    cdef object take(self, bytes content)
    cdef object take_edited(self, bytes above, bytes base, Py_ssize_t hidden)
    cdef Spooled keep(self, bytes middle, Py_ssize_t head, Py_ssize_t tail)
