# A transaction of a client as it comes in.

from .._mail cimport Connection, Mail
from .._names cimport Names
from ...smtp._data cimport DataReceiver

cdef class Incoming:
    cdef list recipients
    cdef list named                 # the same, as the client named them, some maybe twice; None if there was one
    cdef set dropped                # those for whom a plugin discards what comes; None if there are none
    cdef bint drops                 # a plugin discards all that comes
    cdef dict dsn                   # what the client says of notifications, by recipients; None if nothing
    cdef bytes received             # the message as it came, with our trace, whatever plugins make of it
    cdef double received_at
    cdef Py_ssize_t loops
    cdef Py_ssize_t hops
    cdef unsigned long long number  # of the first of its mails
    cdef str id                     # of that one

    cdef int begin(self) except -1
    cdef int add(self, recipient, dict dsn) except -1
    cdef int drop(self, recipient) except -1
    cdef bint is_for_nobody(self) except -1
    cdef int name_each_once(self) except -1
    cdef int take(self, DataReceiver receiver, Names names) except -1
    cdef list make_mails(self, Mail message, Connection connection, Names names, bint traced, bint utf8)
