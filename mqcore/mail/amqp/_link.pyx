# cython: nonecheck=True
# (A Link may be asked for anything before its __init__.)
"""The part of a connection to a broker that each message goes through."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t

from ...amqp._channel cimport Delivery
from ...amqp._protocol cimport ClientProtocol
from ...amqp._unconfirmed cimport Outcome

cdef enum:
    READ = 1 << 18                  # octets that are read at once


cdef class Link:
    """What arrives is heard: deliveries and outcomes by `on_message`, all else by `hear`. What is said in a turn of the loop is
    sent at its end, by `send`. A subclass has these two.

    `is_writable`: whether it takes more, or what was published is still on the way. `silent_beats`: how many beats of the heart
    the broker has said nothing for.
    """

    def __init__(self, ClientProtocol protocol not None, loop not None, on_message not None):
        self.protocol = protocol
        self.call_soon = loop.call_soon
        self.on_message = on_message
        self.is_writable = True
        self.arriving = PyByteArray_FromStringAndSize(NULL, READ)

    # Of asyncio's buffered protocols: nothing of what is read is copied but to where it stays.

    def get_buffer(self, Py_ssize_t size):
        return self.arriving

    def buffer_updated(self, Py_ssize_t size):
        cdef bytearray arriving = self.arriving
        if not 0 <= size <= len(arriving):
            raise ValueError(f"{size} octets in a buffer of {len(arriving)}")
        self.silent_beats = 0
        for event in self.protocol.hear(<const uint8_t *>PyByteArray_AS_STRING(arriving), size):
            if type(event) is Outcome or type(event) is Delivery and (<Delivery>event).consumer_tag is not None:
                self.on_message(event)
            else:
                self.hear(event)
        if not self.is_due:
            self.flush()

    cpdef uint64_t publish(self, unsigned int channel, str exchange, str routing_key, bytes properties, bytes body) except 0:
        """Persistent or not, as `properties` say; mandatory. Returns the tag of its Outcome."""
        cdef uint64_t tag = self.protocol.publish(channel, exchange, routing_key, properties, body)
        if not self.is_due:
            self.flush_soon()
        return tag

    cpdef bint ack(self, Delivery delivery) except -1:
        """False if the broker gives it to somebody again."""
        cdef bint done = self.protocol.ack(delivery)
        if not self.is_due:
            self.flush_soon()
        return done

    cpdef object flush_soon(self):
        """At the end of this turn of the loop: call it after each method of `protocol`."""
        if not self.is_due:
            self.is_due = True
            self.call_soon(self.flush)

    def flush(self):
        cdef list parts
        self.is_due = False
        parts = self.protocol.take_parts()
        if parts:
            self.send(parts)
