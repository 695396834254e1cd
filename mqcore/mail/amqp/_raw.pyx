"""What a message says of a mail that is its body as it is."""

from libc.time cimport time
from ...amqp._tables cimport put_number, put_short_string, put_table

from . import body

cdef str RAW = body.RAW

cdef enum:
    FLAGS = 0xB0C8          # content_type, headers, delivery_mode, message_id, timestamp, app_id
    PRIORITY = 1 << 11


def known_by_headers(headers not None):
    """What is known of such a mail: all headers but those that begin with x-."""
    cdef dict known = {}
    cdef str name
    for name, value in headers.items():
        if len(name) < 2 or name[1] != u"-" or name[0] not in u"xX":
            known[name] = value
    return known


def encode_raw(known not None, str id not None):
    """As `encode_properties` gives them, with what is known of the mail as headers. Raises ValueError, TypeError for what AMQP
    has no room or no type for."""
    cdef bytearray out = bytearray(2)
    cdef dict headers = {}
    cdef unsigned int flags = FLAGS
    for name, value in known.items():
        if value is not None:
            headers[name] = value
    headers["x-mqcore-attempt"] = 1
    priority = known.get("priority")
    put_short_string(out, RAW)
    put_table(out, headers, 0)
    put_number(out, 2, 1)
    if type(priority) is int and 0 <= priority < 256:
        flags |= PRIORITY
        put_number(out, priority, 1)
    put_short_string(out, id)
    put_number(out, time(NULL), 8)
    put_short_string(out, "mqcore")
    out[0] = flags >> 8
    out[1] = flags & 0xFF
    return bytes(out)
