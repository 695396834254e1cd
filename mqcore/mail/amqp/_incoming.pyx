"""Messages of a queue, from when they come until the queue need not have them any more."""

import os
import time

cimport cython
from cpython.time cimport monotonic
from libc.stdint cimport uint64_t

from ...amqp._channel cimport Delivery
from .._counts cimport IN_DOUBT, REDELIVERED
from .._mail cimport Mail, Unread, new_mail, new_unread_mail
from .._origin cimport new_origin
from .._transaction cimport Transaction
from ._ids cimport Done, Ids
from ._link cimport Link
from ._raw cimport RawFields, read_raw, scan_raw

from ...amqp._properties import decode_fields
from ...amqp.errors import ProtocolError
from ...amqp.fields import Properties
from ..verdicts import ACCEPTED
from .body import Unreadable
from .message import read_mail, read_message
from .retries import read_time, time_to_wait
from .returns import Letter

cdef enum:
    DONE_PART = 4                   # so many times as many octets are open at most as are kept of what is done with

cdef uint64_t LATEST = 1 << 40      # seconds; what is later is no time
cdef object NOTHING = object()


@cython.final
@cython.no_gc
cdef class UnreadRaw(Unread):
    """A message that is a mail as it is, and nothing special."""

    cdef dict read_known(self):
        return read_raw(self.header)

    cdef object read_origin(self):
        cdef dict known = self.read_known()
        received = self.received or None
        return new_origin(self.mime, self.id, self.place, known.get("envelope"), received, known.get("recipient") or None,
                          self.has_id)


cdef class Incoming(Transaction):
    """A message of the queue, whose mail is on its way. `connection`: the one that it came by, on which alone it can be
    acknowledged.

    `is_void`: the broker offers it again, or did so already. `comes_again`: whether it was put back for later. Then it may have
    the same id as now, and is not to be taken for done with.
    """

    @property
    def letter(self):
        """Made when somebody asks for it, as nearly all mails go on to the sink."""
        if self.written is None:
            message = read_message(self.delivery, self.id)
            self.written = Letter(self.delivery, message, self.mails[0], self.is_wanted)
        return self.written

    def is_wanted(self):
        """Whether the queue still counts on us."""
        return not self.is_void

    cpdef object settle(self, list verdicts):
        self.intake.settle(self, verdicts[0])

    async def put_back(self, verdict):
        return await self.intake.put_back(self, verdict)


cdef class Intake:
    """Offers what comes to a gateway, and acknowledges it when it is settled.

    `most_bytes`: no more is read while what is open has more. A subclass does what is seldom: `turn_away`, `put_off`,
    `tell_result`, `leave_soon`, and `put_back` of a transaction.
    """

    def __init__(self, where not None, gateway not None, subscription not None, loop not None, Py_ssize_t most_bytes):
        self.gateway = gateway
        self.subscription = subscription
        self.call_soon = loop.call_soon
        self.counts = gateway.report.counts
        of_bodies = gateway.sink.remembers or gateway.failed is not None
        self.ids = Ids(where.queue, of_bodies=of_bodies)
        self.done = Done(most_bytes // DONE_PART, of_bodies=of_bodies)
        self.tells_results = bool(where.results)
        self.has_ladder = bool(where.ladder)
        self.asks_sink = gateway.sink.remembers
        self.most_bytes = most_bytes
        self.open = {}
        self.offered = []
        self.counts_acks = True

    # What comes

    def take(self, Delivery delivery not None):
        """It came by `link`."""
        self.receive(delivery)

    cdef int receive(self, Delivery delivery) except -1:
        cdef Incoming incoming
        if not self.offered:
            self.last = monotonic()
        self.bytes += delivery.size
        if self.bytes > self.most_bytes and not self.is_paused:
            self.is_paused = True
            self.link.pause_reading()
        if self.is_stopped:
            self.open[delivery] = None
            return 0
        if delivery.redelivered:
            self.redeliveries += 1
            self.counts.numbers[REDELIVERED] += 1
        else:
            self.first_deliveries += 1
        self.place += 1
        try:
            incoming = self.read(delivery)
        except Unreadable as error:
            self.open[delivery] = None
            self.turn_away(self.link, delivery, str(error))
            return 0
        if incoming.has_id and self.is_present(incoming):
            self.open[delivery] = None
            self.gateway.skip(1)
            self.finish(incoming, True)
            return 0
        known = (<Mail>incoming.mails[0]).known
        if self.has_ladder and known is not None and "nextattempt" in <dict>known:
            seconds = time_to_wait(known, time.time())
            if seconds:
                self.open[delivery] = None
                self.put_off(incoming, seconds)
                return 0
        self.open[delivery] = incoming
        if not self.offered:
            self.call_soon(self._offer_all)
        self.offered.append(incoming)
        return 0

    def _offer_all(self):
        cdef list offered = self.offered
        self.offered = []
        if not self.is_stopped:
            self.gateway.offer([incoming for incoming in offered if not (<Incoming>incoming).is_void])

    cdef Incoming read(self, Delivery delivery):
        """Raises Unreadable."""
        cdef RawFields fields
        cdef Incoming incoming
        cdef UnreadRaw unread
        if delivery.body is None or not scan_raw(delivery.header, &fields):
            return self.read_other(delivery)
        incoming = self.make(delivery, fields.message_id, fields.message_id_size)
        unread = UnreadRaw.__new__(UnreadRaw)
        unread.header = delivery.header
        unread.mime = delivery.body
        unread.id = incoming.id
        unread.has_id = incoming.has_id
        unread.place = self.place
        if fields.has_timestamp and fields.timestamp < LATEST:
            unread.received = fields.timestamp
        incoming.mails = (new_unread_mail(delivery.body, unread),)
        return incoming

    cdef Incoming read_other(self, Delivery delivery):
        """What does not look as it mostly does."""
        cdef dict fields
        cdef bytes message_id = b""
        cdef Incoming incoming
        try:
            fields = decode_fields(delivery.header)
        except ProtocolError as error:
            raise Unreadable(f"its properties are none: {error}") from error
        mime, known = read_mail(delivery, Properties(**fields))
        received = read_time(known.get("received"))
        if received is None:
            received = read_time(fields.get("timestamp"))
        if fields.get("message_id"):
            message_id = fields["message_id"].encode("utf-8", "surrogateescape")
        incoming = self.make(delivery, message_id, len(message_id))
        recipient = known.get("recipient")
        if not recipient:
            recipients = known.get("recipients")
            recipient = recipients[0] if recipients and len(recipients) == 1 else None
        origin = new_origin(mime, incoming.id, self.place, known.get("envelope"), received, recipient, incoming.has_id)
        incoming.mails = (new_mail(mime, known, None, origin),)
        return incoming

    cdef Incoming make(self, Delivery delivery, const char *message_id, Py_ssize_t size):
        """Without its mail."""
        cdef Incoming incoming = Incoming.__new__(Incoming)
        incoming.intake = self
        incoming.connection = self.link
        incoming.delivery = delivery
        if message_id != NULL and size > 0:
            incoming.has_id = True
            incoming.id = self.ids.make(message_id[:size], delivery.body)
        else:
            incoming.id = os.urandom(16).hex()
        return incoming

    cdef bint is_present(self, Incoming incoming) except -1:
        cdef Delivery delivery = incoming.delivery
        return delivery.redelivered and self.done.has(incoming.id, delivery.body) or (
            self.asks_sink and self.gateway.has(incoming.id))

    def lose(self):
        """Whatever the broker gave us, it gives to somebody again."""
        cdef Incoming incoming
        lost, self.open = self.open, {}
        self.link = None
        self.bytes = 0
        self.is_paused = False
        self.counts_acks = True
        self.subscription.lose()
        for incoming in lost.values():
            if incoming is not None:
                incoming.is_void = True
                incoming.void()

    # What is settled

    cdef int settle(self, Incoming incoming, verdict) except -1:
        if verdict is not ACCEPTED and not verdict.is_good:
            if not (incoming.is_void or self.is_stopped):
                self.leave_soon(incoming)
        elif self.tells_results and not incoming.is_put_back:
            self.tell_result(incoming, verdict)
        else:
            self.finish(incoming, not incoming.comes_again)
        return 0

    def ack(self, Incoming incoming not None, bint is_over):
        """The queue need not have it any more. Unless it is over, it may come again with the same id."""
        self.finish(incoming, is_over)

    def acknowledge(self, Link connection not None, Delivery delivery not None):
        """Likewise, for what has become no mail."""
        self.confirm(connection, delivery)

    def forget(self, Link connection not None, Delivery delivery not None):
        """The broker does not wait any more to hear of it."""
        self.drop(connection, delivery)

    cdef int finish(self, Incoming incoming, bint is_over) except -1:
        self.confirm(incoming.connection, incoming.delivery)
        if is_over and incoming.has_id:
            self.done.add(incoming.id, incoming.delivery.body)
        return 0

    cdef int confirm(self, Link connection, Delivery delivery) except -1:
        if connection.ack(delivery):
            self.acks += 1
            if self.counts_acks:
                self.counts_acks = self.subscription.acked()
        else:
            self.counts.numbers[IN_DOUBT] += 1
        return self.drop(connection, delivery)

    cdef int drop(self, Link connection, Delivery delivery) except -1:
        if self.open.pop(delivery, NOTHING) is NOTHING:
            return 0
        self.bytes -= delivery.size
        if self.is_paused and self.bytes <= self.most_bytes:
            self.is_paused = False
            connection.resume_reading()
        if not self.open:
            self.subscription.drained()
        return 0
