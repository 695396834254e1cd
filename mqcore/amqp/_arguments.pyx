"""The arguments of methods."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from ._tables cimport Cursor, put_number, put_short_string, put_table, take, take_long_string, take_short_string, take_table
from ._wire cimport get16, get32, get64

from . import errors
from .errors import ProtocolError

cdef dict SIZES = {"octet": 1, "short": 2, "long": 4, "longlong": 8}


def pack(tuple ids not None, tuple kinds not None, tuple arguments not None):
    """What a method's frame has in it. Raises ValueError, TypeError."""
    cdef bytearray out = bytearray()
    cdef int bits = 0               # how many stand in the last octet
    for number in ids:
        put_number(out, number, 2)
    for kind, value in zip(kinds, arguments, strict=True):
        if kind == "bit":
            if bits == 0:
                out.append(0)
            if value:
                out[len(out) - 1] |= 1 << bits
            bits += 1
        else:
            bits = 0
            put_argument(out, kind, value)
    return bytes(out)


cdef int put_argument(bytearray out, str kind, value) except -1:
    if kind == "shortstr":
        put_short_string(out, value)
    elif kind == "longstr":
        put_number(out, len(value), 4)
        out += value
    elif kind == "table":
        put_table(out, value, 0)
    else:
        size = SIZES[kind]
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(f"{value} does not fit into {size} octets")
        put_number(out, value, size)
    return 0


def unpack(bytes payload not None, tuple kinds not None):
    """What `pack` was given; bits are bools, long strings bytes. Raises ProtocolError."""
    cdef Cursor cursor
    cdef list values = []
    cdef int bits = 0
    cdef uint8_t octet = 0
    cursor.at = <const uint8_t *>PyBytes_AS_STRING(payload)
    cursor.end = cursor.at + PyBytes_GET_SIZE(payload)
    take(&cursor, 4)
    for kind in kinds:
        if kind == "bit":
            if bits == 0:
                octet = take(&cursor, 1)[0]
            values.append(octet >> bits & 1 == 1)
            bits += 1
        else:
            bits = 0
            values.append(take_argument(&cursor, kind))
    if cursor.at != cursor.end:
        raise ProtocolError(errors.SYNTAX_ERROR, "there is something behind a method")
    return values


cdef object take_argument(Cursor *cursor, str kind):
    if kind == "shortstr":
        return take_short_string(cursor)
    if kind == "longstr":
        return take_long_string(cursor)
    if kind == "table":
        return take_table(cursor, 0)
    if kind == "octet":
        return take(cursor, 1)[0]
    if kind == "short":
        return get16(take(cursor, 2))
    return get32(take(cursor, 4)) if kind == "long" else get64(take(cursor, 8))
