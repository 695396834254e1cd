# One message as it comes in by SMTP.

cdef class DataReceiver:
    cdef Py_ssize_t max_size
    cdef bytearray text
    cdef Py_ssize_t line            # where in it the line begins that has not ended yet
    cdef Py_ssize_t lines
    cdef Py_ssize_t head            # where the empty line is that ends the header; 0 if none came yet
    cdef bytes trace
    cdef Py_ssize_t max_loops
    cdef bint lenient
    cdef bint stray                 # a CR or LF that is not part of a CR LF
    cdef bint dots                  # a line begins with one
    cdef Py_ssize_t discarded
    cdef readonly str fault
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t loops
    cdef readonly Py_ssize_t hops

    cdef Py_ssize_t collect(self, const char *data, Py_ssize_t size) except -1
    cdef int grow(self, Py_ssize_t size) except -1
    cdef bint look(self, Py_ssize_t at) noexcept
    cdef int discard(self) except -1
    cdef int check(self) except -1
    cdef int straighten(self) except -1
    cdef bytes below(self, bytes top)
    cdef int count_loops(self) except -1
    cpdef bytes finish(self)

cdef DataReceiver new_receiver(Py_ssize_t max_size, bytes trace, Py_ssize_t max_loops, bint lenient)
