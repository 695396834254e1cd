"""One channel: what is due on it, and the message that is coming in."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from ._properties cimport find_mark
from ._properties import decode_properties
from ._tables cimport Cursor, take, take_short_string
from ._unsettled cimport Unsettled
from ._wire cimport BASIC, get16, get64

from . import errors
from .errors import ProtocolError

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text) noexcept

cdef enum:
    HEADER_SIZE = 12                # class, weight, size of the body


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Delivery:
    """A message that a consumer or a `get` has got. It is settled once, by `ack`, `nack` or `reject` of the protocol that it
    came from; all that is not goes back to its queue when its channel ends.

    `consumer_tag`: None for the answer to a `get`.
    `header`: its properties as they came.
    `body`: None if it has more octets than the client takes, `size` says how many; these were dropped.
    """

    @property
    def channel(self):
        return 0 if self.owner is None else self.owner.number

    def properties(self):
        """Read anew by each call. Raises ProtocolError: a publisher may have written anything."""
        return decode_properties(self.header)

    def __repr__(self):
        return f"<Delivery {self.tag} on channel {self.channel}, {self.size} octets>"


@cython.final
@cython.no_gc_clear
cdef class Channel:

    def __cinit__(self, unsigned int number):
        self.number = number
        self.expected = []
        self.unsettled = Unsettled()
        self.exchange = self.routing_key = ""

    cdef int begin_delivery(self, const uint8_t *p, Py_ssize_t size, bint got) except -1:
        """The arguments of basic.deliver, or of basic.get-ok."""
        cdef Cursor cursor
        cursor.at = p
        cursor.end = p + size
        cdef str consumer_tag = None if got else same_or_new(self.consumer_tag, &cursor)
        cdef uint64_t tag = get64(take(&cursor, 8))
        cdef bint redelivered = take(&cursor, 1)[0] & 1
        self.exchange = same_or_new(self.exchange, &cursor)
        self.routing_key = same_or_new(self.routing_key, &cursor)
        if got:
            take(&cursor, 4)  # how many are left
        if cursor.at != cursor.end:
            raise ProtocolError(errors.SYNTAX_ERROR, "there is something behind a method")
        if tag <= self.tag:  # acks for many rest on this
            raise ProtocolError(errors.COMMAND_INVALID, f"delivery {tag} comes behind {self.tag} on channel {self.number}")
        self.consumer_tag = consumer_tag
        self.tag = tag
        self.redelivered = redelivered
        self.content = DELIVERED
        return 0

    cdef int begin_return(self, const uint8_t *p, Py_ssize_t size) except -1:
        """The arguments of basic.return."""
        cdef Cursor cursor
        cursor.at = p
        cursor.end = p + size
        self.code = get16(take(&cursor, 2))
        self.text = take_short_string(&cursor)
        take_short_string(&cursor)  # the exchange and the routing key, which the publisher knows
        take_short_string(&cursor)
        if cursor.at != cursor.end:
            raise ProtocolError(errors.SYNTAX_ERROR, "there is something behind a method")
        self.content = RETURNED
        return 0

    cdef int begin_body(self, const uint8_t *p, Py_ssize_t size, uint64_t max_body) except -1:
        """A header frame."""
        if self.content == NO_CONTENT or self.has_header:
            raise ProtocolError(errors.UNEXPECTED_FRAME, f"a header without a method on channel {self.number}")
        if size < HEADER_SIZE or get16(p) != BASIC:
            raise ProtocolError(errors.SYNTAX_ERROR, "this is no header of a message")
        cdef uint64_t body_size = get64(p + 4)
        cdef bytes body = None
        self.header = PyBytes_FromStringAndSize(<const char *>p + HEADER_SIZE, size - HEADER_SIZE)
        if self.content == DELIVERED and body_size <= max_body:
            body = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>body_size)
        self.body = body
        self.size = body_size
        self.have = 0
        self.has_header = True
        return 0

    cdef int add(self, const uint8_t *p, Py_ssize_t size) noexcept:
        """A part of the body, which is not longer than was said."""
        if self.body is not None:
            memcpy(PyBytes_AS_STRING(self.body) + self.have, p, size)
        self.have += size
        return 0

    cdef int complete(self, list events) except -1:
        """All of the message is there."""
        cdef Delivery delivery
        if self.content == RETURNED:
            if self.unconfirmed is None:
                text = f"basic.return on channel {self.number}, on which nothing was published"
                raise ProtocolError(errors.COMMAND_INVALID, text)
            self.unconfirmed.take_back(find_mark(self.header), self.code, self.text)
        elif self.state == OPEN:
            delivery = Delivery.__new__(Delivery)
            delivery.owner = self
            delivery.tag = self.tag
            delivery.redelivered = self.redelivered
            delivery.consumer_tag = self.consumer_tag
            delivery.exchange = self.exchange
            delivery.routing_key = self.routing_key
            delivery.header = self.header
            delivery.body = self.body
            delivery.size = self.size
            delivery.slot = self.unsettled.add(self.tag)
            events.append(delivery)
        self.drop_content()
        return 0

    cdef int drop_content(self) noexcept:
        self.content = NO_CONTENT
        self.has_header = False
        self.header = None
        self.body = None
        return 0

    cdef int end(self, list events) except -1:
        """Nothing comes and goes any more."""
        self.state = CLOSED
        self.drop_content()
        return 0 if self.unconfirmed is None else self.unconfirmed.end_all(events)


cdef str same_or_new(str last, Cursor *cursor):
    """A short string, which is nearly always what the last one was."""
    cdef const uint8_t *begin = cursor.at
    cdef Py_ssize_t size, length
    cdef const char *text
    if last is not None and PyUnicode_IS_ASCII(last):
        text = PyUnicode_AsUTF8AndSize(last, &length)
        size = take(cursor, 1)[0]
        if size == length and memcmp(take(cursor, size), text, size) == 0:
            return last
        cursor.at = begin
    return take_short_string(cursor)
