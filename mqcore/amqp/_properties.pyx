"""The properties of a message: flags, then what they say is there.

A message that is published gets a header of ours, its mark: the delivery tag that the broker will confirm it by. The broker
sends back the properties of what it can route nowhere, and says nothing else of which publish that was. The next confirm need
not be the returned message's: RabbitMQ sends those that have gathered first, lowest tag first (`noreply_coalesce` in
rabbit_channel.erl).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._tables cimport (
    Cursor, put_number, put_short_string, put_table, take, take_part, take_short_string, take_table, take_value)
from ._wire cimport get16, get32, get64, put16, put32, put64

from . import errors
from .errors import ProtocolError
from .fields import Properties

cdef enum:
    CONTENT_TYPE = 1 << 15
    CONTENT_ENCODING = 1 << 14
    HEADERS = 1 << 13
    MARK_NAME_SIZE = 14

cdef const char *MARK_NAME = b"\x0cx-mqcore-tagl"   # and the type of its value
cdef str MARK = "x-mqcore-tag"

# In their order, from the highest flag on, with how they are written.
cdef list FIELDS = [
    ("content_type", "s"), ("content_encoding", "s"), ("headers", "t"), ("delivery_mode", 1), ("priority", 1),
    ("correlation_id", "s"), ("reply_to", "s"), ("expiration", "s"), ("message_id", "s"), ("timestamp", 8), ("type", "s"),
    ("user_id", "s"), ("app_id", "s"), ("cluster_id", "s"),
]


def encode_properties(properties not None):
    """As they stand in a header frame. Raises ValueError, TypeError for what AMQP has no room or no type for."""
    cdef bytearray out = bytearray(2)
    cdef unsigned int flags = 0, flag = CONTENT_TYPE
    for name, kind in FIELDS:
        value = getattr(properties, name)
        if value is not None and (kind != "t" or value):
            flags |= flag
            if kind == "s":
                put_short_string(out, value)
            elif kind == "t":
                put_table(out, value, 0)
            elif 0 <= value < 1 << 8 * kind:
                put_number(out, value, kind)
            else:
                raise ValueError(f"{name} cannot be {value}")
        flag >>= 1
    out[0] = flags >> 8
    out[1] = flags & 0xFF
    return bytes(out)


def decode_properties(bytes data not None):
    """Without the mark, which is for the publisher only. Raises ProtocolError."""
    return Properties(**decode_fields(data))


def decode_fields(bytes data not None):
    """Those that are there, by their names. Raises ProtocolError."""
    cdef Cursor cursor
    cdef unsigned int flag = CONTENT_TYPE
    cursor.at = <const uint8_t *>PyBytes_AS_STRING(data)
    cursor.end = cursor.at + PyBytes_GET_SIZE(data)
    cdef unsigned int flags = get16(take(&cursor, 2))
    cdef dict fields = {}
    for name, kind in FIELDS:
        if flags & flag:
            fields[name] = take_field(&cursor, kind)
        flag >>= 1
    if cursor.at != cursor.end or flags & 3:
        raise ProtocolError(errors.SYNTAX_ERROR, "there is something behind the properties of a message")
    if "headers" in fields:
        fields["headers"].pop(MARK, None)
    return fields


cdef object take_field(Cursor *cursor, kind):
    if kind == "s":
        return take_short_string(cursor)
    if kind == "t":
        return take_table(cursor, 0)
    return take(cursor, 1)[0] if kind == 1 else get64(take(cursor, 8))


# The mark

cdef Py_ssize_t find_headers(const uint8_t *p, Py_ssize_t size) noexcept:
    """Where the table of headers is, or would be; -1 if these are no properties."""
    cdef Py_ssize_t at = 2
    if size < 2:
        return -1
    cdef unsigned int flags = get16(p)
    if flags & CONTENT_TYPE:
        at += 1 + p[at] if at < size else size
    if flags & CONTENT_ENCODING:
        at += 1 + p[at] if at < size else size
    if at > size or flags & HEADERS and (size - at < 4 or size - at - 4 < get32(p + at)):
        return -1
    return at


cdef Py_ssize_t marked_size(const uint8_t *p, Py_ssize_t size) noexcept:
    """How many octets these properties have with a mark."""
    return size + MARK_SIZE + (0 if get16(p) & HEADERS else 4)


cdef uint8_t *put_marked(uint8_t *to, const uint8_t *p, Py_ssize_t size, Py_ssize_t headers, uint64_t tag) noexcept:
    """These properties, whose `headers` are there, with the mark as the first of them."""
    cdef unsigned int flags = get16(p)
    cdef uint32_t table = 0
    cdef Py_ssize_t rest = headers
    if flags & HEADERS:
        table = get32(p + headers)
        rest += 4
    memcpy(put16(to, flags | HEADERS), p + 2, headers - 2)
    to = put32(to + headers, table + MARK_SIZE)
    memcpy(to, MARK_NAME, MARK_NAME_SIZE)
    to = put64(to + MARK_NAME_SIZE, tag)
    memcpy(to, p + rest, size - rest)
    return to + size - rest


cdef uint64_t find_mark(bytes header) except? 0:
    """The tag in properties that came back; 0 if there is none. Raises ProtocolError."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(header)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(header), at = find_headers(p, size)
    cdef Cursor cursor
    if at < 0 or not get16(p) & HEADERS:
        return 0
    cursor.at = p + at
    cursor.end = p + size
    # RabbitMQ since 4.0 sends headers back in the order of their names; of two of one name, which a message has that is
    # published again as it came, ours stays the first.
    cursor = take_part(&cursor, 0)
    while cursor.at != cursor.end:
        name = take_short_string(&cursor)
        value = take_value(&cursor, 0)
        if name == MARK:
            return value if type(value) is int and value > 0 else 0
    return 0
