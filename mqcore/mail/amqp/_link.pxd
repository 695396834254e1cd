# The part of a connection to a broker that each message goes through.

from libc.stdint cimport uint64_t

from ...amqp._channel cimport Delivery
from ...amqp._protocol cimport ClientProtocol

cdef class Link:
    cdef readonly ClientProtocol protocol
    cdef public bint is_writable
    cdef public int silent_beats
    cdef bint is_due                # `flush` is, at the end of this turn of the loop
    cdef object call_soon           # the loop's
    cdef object on_message
    cdef bytearray arriving

    cpdef uint64_t publish(self, unsigned int channel, str exchange, str routing_key, bytes properties, bytes body) except 0
    cpdef bint ack(self, Delivery delivery) except -1
    cpdef object flush_soon(self)
