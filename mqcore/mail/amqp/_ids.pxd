# The ids of the messages of a queue.

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "blake2.h" nogil:
    ctypedef struct blake2_state:
        pass

    ctypedef void blake2_stripes(void *, const uint8_t *, size_t) noexcept

cdef class Ids:
    cdef blake2_state begun         # a hash of the queue's name
    cdef blake2_stripes *compress

    cdef str make(self, const char *message_id, Py_ssize_t size, bytes body, uint64_t *key)
