"""A message of the queue as a mail on its way."""

import os

from ...amqp._channel cimport Delivery
from .._mail cimport new_mail
from .._transaction cimport Transaction

from ...amqp._properties import decode_fields
from ...amqp.errors import ProtocolError
from ...amqp.fields import Properties
from ..origin import Origin
from . import body
from ._raw import known_by_headers
from .body import Unreadable, check_addresses
from .message import finish_id, read_mail, read_message
from .retries import read_time
from .returns import Letter

cdef str RAW = body.RAW


cdef class Incoming(Transaction):
    """A message of the queue, whose mail is on its way. `connection`: the one that it came by, on which alone it can be
    acknowledged.

    `is_void`: the broker offers it again, or did so already. `comes_again`: whether it was put back for later. Then it may have
    the same id as now, and is not to be taken for done with.
    """

    cdef object consumer
    cdef readonly object connection
    cdef readonly Delivery delivery
    cdef readonly str id
    cdef readonly bint has_id
    cdef public bint is_void
    cdef public bint is_put_back
    cdef public bint comes_again
    cdef object written             # what `letter` gives

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
        self.consumer.settle(self, verdicts[0])

    async def put_back(self, verdict):
        return await self.consumer.put_back(self, verdict)


def read_incoming(consumer, connection, Delivery delivery not None, digest, Py_ssize_t place):
    """`digest`: of `begin_id`. Raises Unreadable."""
    cdef Incoming incoming = Incoming.__new__(Incoming)
    cdef dict fields, known
    try:
        fields = decode_fields(delivery.header)
    except ProtocolError as error:
        raise Unreadable(f"its properties are none: {error}") from error
    if delivery.body is not None and fields.get("content_type") == RAW and "content_encoding" not in fields:
        mime = delivery.body
        known = known_by_headers(fields.get("headers") or {})
        if "recipients" in known or not (is_address(known.get("envelope")) and is_address(known.get("recipient"))):
            check_addresses(known)
    else:
        mime, known = read_mail(delivery, Properties(**fields))
    incoming.consumer = consumer
    incoming.connection = connection
    incoming.delivery = delivery
    message_id = fields.get("message_id")
    if message_id:
        incoming.has_id = True
        incoming.id = finish_id(digest, message_id, delivery.body)
    else:
        incoming.id = os.urandom(16).hex()
    received = known.get("received")
    if received is not None:
        received = read_time(received)
    if received is None and "timestamp" in fields:
        received = read_time(fields["timestamp"])
    recipient = known.get("recipient")
    if not recipient:
        recipients = known.get("recipients")
        recipient = recipients[0] if recipients and len(recipients) == 1 else None
    origin = tuple.__new__(Origin, (mime, incoming.id, place, known.get("envelope"), received, None, None, recipient, None,
                                    None, incoming.has_id, False, 0, 0, None))
    incoming.mails = (new_mail(mime, known, None, origin),)
    return incoming


cdef bint is_address(value) except -1:
    return value is None or type(value) is str and u"\r" not in <str>value and u"\n" not in <str>value
