# The ids of the messages of a queue.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    BLOCK = 128                 # octets
    ID_SIZE = 16                # likewise

cdef struct State:
    uint64_t h[8]
    uint64_t count              # octets so far
    Py_ssize_t used             # of the block
    uint8_t block[BLOCK]

cdef class Ids:
    cdef State begun

    cdef str make(self, const char *message_id, Py_ssize_t size, bytes body, uint64_t *key)
