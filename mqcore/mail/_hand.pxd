# Which mails plugins or the sink have now, in memory that another process shares.

from libc.stdint cimport uint64_t
from ._transaction cimport Transaction

cdef class Hand:
    cdef uint64_t *digests              # 0 where there is none
    cdef unsigned int *free             # a stack of their places
    cdef Py_ssize_t left                # on it
    cdef Py_ssize_t size
    cdef uint64_t seed
    cdef Py_buffer shared
    cdef bint is_shared
    cdef Transaction alone              # that nothing else begins beside
    cdef public object suspects         # digests, of mails that run alone
    cdef public object refused          # of those that do not run any more
    cdef public object survived         # is called with a suspect's digest, when it did no harm

    cdef bint must_wait(self, Transaction transaction, Py_ssize_t in_flight) except -1
    cdef bint is_refused(self, Transaction transaction) except -1
    cdef int take(self, Transaction transaction) except -1
    cdef int leave(self, Transaction transaction) except -1
    cdef uint64_t digest_of(self, Transaction transaction) except? 0
