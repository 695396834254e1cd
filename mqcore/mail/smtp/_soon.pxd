# The short way of a mail to the next server.

from ..._hook cimport Hook
from ...smtp._exchange cimport Exchange
from .._counts cimport Row
from .._mail cimport Mail

cdef class Job:
    cdef Soon soon
    cdef readonly tuple mails       # as `deliver_soon` was given them: one
    cdef Mail mail
    cdef object token
    cdef object answer
    cdef readonly str envelope
    cdef readonly list recipients
    cdef readonly bytes content     # None until it is sent
    cdef bint is_forwarded          # there is something that a server which offers XFORWARD is to be told
    cdef object verdict             # if it is noted

    cdef int finish(self, error) except -1

cdef class Link:
    cdef public object _transport
    cdef public double timeout      # s, for the reply to a command
    cdef public double answer_timeout  # and for that to a message
    cdef public double min_rate     # octets in a second, of a message
    cdef public double deadline     # of the loop's clock
    cdef public double due          # when `look` is called; 0: it is not
    cdef public bint is_used
    cdef public bint is_clear
    cdef public bint is_open
    cdef bint is_quick              # see `offers`
    cdef bint says_size
    cdef bint says_8bit
    cdef bint forwards
    cdef bint lmtp
    cdef Py_ssize_t most            # octets of a message; 0: any number
    cdef object now                 # the loop's clock
    cdef int fd                     # the socket
    cdef Exchange exchange          # None if there is no mail on its short way
    cdef Job job

    cpdef bint begin(self, Job job) except -1
    cpdef object expect(self, double timeout)
    cdef int end(self) except -1

cdef class Soon:
    cdef object sender
    cdef object pool
    cdef object record              # of what is delivered, or None
    cdef dict partly                # see `Record`
    cdef object forwarded_of
    cdef object counted             # replies, by code
    cdef object sent                # see `Sender`
    cdef Row counts
    cdef Hook data_hook
    cdef Hook sent_hook
    cdef bint together

    cdef Job job_for(self, tuple mails)
    cdef int delivered(self, Link link, Job job, list replies) except -1
