from libc.stdint cimport int32_t, uint8_t, uint64_t

from ._output cimport Output
from ._unconfirmed cimport Unconfirmed
from ._unsettled cimport Unsettled

cdef enum ChannelState:
    OPENING = 0
    OPEN
    CLOSING
    CLOSED

cdef enum Content:
    # What comes behind a method: its header, then as many frames as its body has.
    NO_CONTENT = 0
    DELIVERED
    RETURNED

cdef class Channel:
    cdef unsigned int number
    cdef ChannelState state
    cdef list expected              # the names of the replies that are due
    cdef Unsettled unsettled
    cdef Unconfirmed unconfirmed    # None if it is not in confirm mode

    # The message that is coming in
    cdef Content content
    cdef bint has_header
    cdef uint64_t tag
    cdef bint redelivered
    cdef str consumer_tag           # None for an answer to `get`
    cdef str exchange
    cdef str routing_key
    cdef int code                   # of a return
    cdef str text
    cdef bytes header
    cdef bytes body                 # None if it is dropped
    cdef uint64_t size
    cdef uint64_t have

    cdef int begin_delivery(self, const uint8_t *p, Py_ssize_t size, bint got) except -1
    cdef int begin_return(self, const uint8_t *p, Py_ssize_t size) except -1
    cdef int begin_body(self, const uint8_t *p, Py_ssize_t size, uint64_t max_body) except -1
    cdef int add(self, const uint8_t *p, Py_ssize_t size) noexcept
    cdef int complete(self, list events) except -1
    cdef int drop_content(self) noexcept
    cdef int end(self, list events) except -1

cdef class Delivery:
    cdef Channel owner
    cdef int32_t slot
    cdef readonly uint64_t tag
    cdef readonly bint redelivered
    cdef readonly str consumer_tag
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bytes header
    cdef readonly bytes body
    cdef readonly uint64_t size
