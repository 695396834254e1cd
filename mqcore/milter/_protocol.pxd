# The milter protocol as a milter speaks it, without any I/O.

from ._macros cimport Macros

cdef enum Kind:
    # What an event is.
    NONE = 0
    CONNECT
    HELO
    MAIL_FROM
    RCPT_TO
    MESSAGE
    ABORT
    GOODBYE

cdef class Content:
    # A message as it came.
    cdef bytes mime                 # all of it, as it will be delivered if nothing changes it
    cdef bytes packets              # its fields as they came, each behind its length
    cdef Py_ssize_t head            # octets of the header in `mime`, with the empty line

    cdef list fields(self)
    cdef object message(self)

cdef class MilterProtocol:
    cdef readonly object wanted
    cdef readonly bint due
    cdef readonly bint is_ended
    cdef readonly bint in_transaction
    cdef bint is_negotiated
    cdef bint wants_connect
    cdef bint wants_secure
    cdef bint wants_sender
    cdef bint wants_recipient
    cdef Kind last                  # of the last event; NONE when a message was answered
    # What the last event tells, by its kind:
    cdef str text                   # the address: of a client, a sender, a recipient; or the name in HELO
    cdef str client                 # what the server calls the client
    cdef int port                   # the client's
    cdef bint tls_began
    cdef bytes raw                  # a recipient as the server knows it
    cdef list parameters            # None: there are none
    cdef Content content            # a message, until it is answered
    cdef bint goes_on
    cdef int actions                # that were agreed upon
    cdef Py_ssize_t max_message
    cdef bytes data
    cdef Py_ssize_t at              # how much of it was taken
    cdef list more                  # what comes behind the data, until the packet there is whole
    cdef Py_ssize_t more_size
    cdef Py_ssize_t missing
    cdef list output
    cdef Macros said                # beside
    cdef str tls
    cdef char *head                 # the fields that came: of each its length and the data of its packet
    cdef Py_ssize_t head_size
    cdef Py_ssize_t head_room
    cdef list chunks                # of the body, but for the last one
    cdef bytes chunk_data           # in which that is; None: there is none
    cdef Py_ssize_t chunk_at
    cdef Py_ssize_t chunk_size
    cdef Py_ssize_t size

    # What the server says
    cpdef int receive(self, bytes data) except -1
    cdef Py_ssize_t waiting(self) noexcept
    cdef Kind next_kind(self) except? NONE
    cdef Kind take(self, char command, const char *data, Py_ssize_t size) except? NONE
    cdef Kind take_other(self, char command, const char *data, Py_ssize_t size) except? NONE
    cdef int negotiate(self, const char *data, Py_ssize_t size) except -1
    cdef int steps(self) except -1
    cdef Kind connect(self, const char *data, Py_ssize_t size) except? NONE
    cdef Kind helo(self, const char *data, Py_ssize_t size) except? NONE
    cdef Kind mail(self, const char *data, Py_ssize_t size) except? NONE
    cdef Kind rcpt(self, const char *data, Py_ssize_t size) except? NONE
    cdef int field(self, const char *data, Py_ssize_t size) except -1
    cdef int chunk(self, const char *data, Py_ssize_t size) except -1
    cdef int keep_chunk(self) except -1
    cdef bint has_room(self, Py_ssize_t size) except -1
    cdef Kind end(self, const char *data, Py_ssize_t size) except? NONE
    cdef Content make_content(self)
    cdef int forget(self) except -1
    cdef int forget_content(self) except -1
    cdef int drop_content(self) except -1

    # What is answered
    cdef int answer(self, bytes data) except -1
    cpdef bytes take_output(self)
    cpdef int proceed(self) except -1
    cpdef int refuse(self, int code, str text) except -1
    cpdef int discard(self) except -1
    cpdef int finish(self, bytes changes) except -1
    cdef bytes answer_with(self, Content content, bytes top)
