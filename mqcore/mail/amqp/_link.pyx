# cython: nonecheck=True
# (A Link may be asked for anything before its __init__.)
"""The part of a connection to a broker that each message goes through."""

from libc.stdint cimport uint64_t

from ...amqp._channel cimport Delivery
from ...amqp._protocol cimport ClientProtocol
from ...amqp._unconfirmed cimport Outcome


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

    def data_received(self, bytes data not None):
        """Of asyncio's protocols."""
        self.silent_beats = 0
        for event in self.protocol.receive(data):
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
        cdef bytes data
        self.is_due = False
        data = self.protocol.take_output()
        if data:
            self.send(data)
