# The ids of the messages of a queue.

from libc.stdint cimport uint64_t

cdef class Ids:
    cdef object begun               # a hash of the queue's name

    cdef str make(self, bytes message_id, bytes body, uint64_t *key)
