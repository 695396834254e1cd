# AMQP 0-9-1 as a client speaks it, without any I/O.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ._channel cimport Channel, Delivery
from ._output cimport Output

cdef enum ConnectionState:
    STARTING = 0                    # connection.start is due
    TUNING
    LOGGED_IN                       # connection.open-ok is due
    OPENED
    ENDING                          # connection.close was sent
    ENDED

cdef enum Stage:
    # What the next octet is.
    IN_FRAME = 0
    IN_BODY                         # what is left of a part of a body, then the end of its frame

cdef class ClientProtocol:
    cdef ConnectionState state
    cdef Output out
    cdef list events
    cdef dict channels              # by their numbers
    cdef Channel last               # that a frame was for
    cdef unsigned int last_number
    cdef bint receiving

    # What was agreed
    cdef str mechanism
    cdef bytes login                # empty once it was sent
    cdef bytes open
    cdef dict client
    cdef dict server
    cdef uint16_t channel_max
    cdef uint32_t frame_max
    cdef uint16_t heartbeat
    cdef uint64_t max_body

    # The frame that is coming in
    cdef Stage stage
    cdef uint8_t *pending           # of one that is no part of a body
    cdef Py_ssize_t capacity
    cdef Py_ssize_t used
    cdef Py_ssize_t left            # of this part of a body

    cpdef list receive(self, bytes data)
    cpdef bytes take_output(self)
    cdef list hear(self, const uint8_t *p, Py_ssize_t size)
    cdef list take_parts(self)
    cpdef uint64_t publish(self, unsigned int channel, str exchange, str routing_key, bytes properties, bytes body,
                           bint mandatory=*) except 0
    cpdef bint ack(self, Delivery delivery) except -1

    cdef int write_acks(self) except -1

    # Frames
    cdef int feed(self, const uint8_t *p, Py_ssize_t size) except -1
    cdef Py_ssize_t begin_frame(self, const uint8_t *p, Py_ssize_t size) except -1
    cdef Py_ssize_t collect(self, const uint8_t *p, Py_ssize_t size) except -1
    cdef Py_ssize_t check_head(self, const uint8_t *p) except -1
    cdef int begin_body_frame(self, const uint8_t *p) except -1
    cdef int end_body_frame(self, uint8_t end) except -1
    cdef int frame(self, const uint8_t *p, Py_ssize_t size) except -1
    cdef Channel find(self, unsigned int number)

    # Methods
    cdef int method(self, unsigned int number, const uint8_t *p, Py_ssize_t size) except -1
    cdef int message_method(self, Channel channel, unsigned int method, const uint8_t *p, Py_ssize_t size) except -1
    cdef int confirm(self, Channel channel, const uint8_t *p, Py_ssize_t size, str kind) except -1
    cdef int expect(self, Channel channel, str name) except -1
    cdef int connection_method(self, str name, list arguments) except -1
    cdef int start(self, list arguments) except -1
    cdef int tune(self, list arguments) except -1
    cdef int closing_method(self, str name, list arguments) except -1
    cdef int channel_method(self, Channel channel, str name, list arguments) except -1
    cdef int closing_channel(self, Channel channel, str name, list arguments) except -1
    cdef int end_channel(self, Channel channel, int code, str text, str method, bint by_broker) except -1
    cdef int end(self, int code, str text, str method, bint by_broker) except -1
    cdef int fail(self, int code, str text) except -1

    # Requests
    cdef Channel opened(self, unsigned int number)
    cdef int request(self, unsigned int number, str reply, bytes payload) except -1
    cdef int send(self, unsigned int number, bytes payload) except -1
    cdef bint is_mine(self, Channel channel) except -1
    cdef bint settle(self, Delivery delivery, str name, tuple how) except -1
