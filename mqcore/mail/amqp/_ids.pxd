# The ids of the messages of a queue, and which are done with.

cdef class Ids:
    cdef object begun               # a hash of the queue's name
    cdef readonly bint of_bodies

    cdef str make(self, bytes message_id, bytes body)

cdef class Done:
    cdef list ids, bodies           # rings: of those from `first` up to `next`
    cdef dict places                # id -> its number, for those before `indexed`, and some that are dropped
    cdef Py_ssize_t first, next, indexed
    cdef Py_ssize_t size            # octets of the bodies
    cdef Py_ssize_t most
    cdef bint of_bodies

    cpdef bint has(self, str id, bytes body) except -1
    cpdef int add(self, str id, bytes body) except -1
    cdef int drop(self) except -1
    cdef int index(self) except -1
