# One message that came in by SMTP, on its way through the plugins to the sink.

from ..._dispatcher cimport Dispatcher
from ..._hook cimport Hook
from .._writer cimport Writer

cdef class Transaction:
    cdef Desk desk
    cdef list mails
    cdef object answer              # called with a Rejection, or None if all is well
    cdef list verdicts
    cdef Py_ssize_t open            # mails that have no verdict yet
    cdef object delivery
    cdef bint is_storing            # it is too late to take it back
    cdef bint cancelled

    cdef str success(self)
    cdef int begin(self) except -1
    cdef int cancel(self) except -1
    cdef int take_verdict(self, mail, outcome) except -1
    cdef int judge(self) except -1
    cdef int refuse(self, refusal) except -1
    cdef int finish(self, refusal) except -1

cdef class Desk:
    cdef Dispatcher dispatcher
    cdef Hook hook
    cdef Writer writer
    cdef object sender
    cdef object counts
    cdef Py_ssize_t max_in_flight
    cdef readonly Py_ssize_t in_flight
    cdef object waiting             # a deque
    cdef bint is_starting
    cdef str name_of_run
    cdef unsigned long long mails   # that were named

    cdef object next_origin(self, bytes mime, envelope, recipient)
    cdef int submit(self, Transaction transaction) except -1
    cdef int turn_away(self, Py_ssize_t count, bint failed) except -1
    cdef int release(self, Py_ssize_t count) except -1
    cdef int start(self) except -1
    cdef int count_refused(self, list verdicts) except -1
