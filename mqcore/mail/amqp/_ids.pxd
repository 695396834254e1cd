# The ids of the messages of a queue, and which are done with.

cdef class Ids:
    cdef object begun               # a hash of the queue's name
    cdef readonly bint of_bodies

    cdef str make(self, bytes message_id, bytes body)

cdef class Done:
    cdef object bodies              # id -> body, or None: in the order in which they were done
    cdef Py_ssize_t size            # octets of the bodies
    cdef Py_ssize_t most
    cdef bint of_bodies

    cpdef bint has(self, str id, bytes body) except -1
    cpdef int add(self, str id, bytes body) except -1
    cdef int drop(self, bytes body) except -1
