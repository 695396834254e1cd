"""Field tables, as RabbitMQ has them: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3.

Text that is not UTF-8 goes both ways by surrogateescape: the broker hands on what publishers wrote, whatever it is.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._wire cimport get16, get32, get64, put32, put64

from decimal import Decimal

from . import errors
from .errors import ProtocolError
from .fields import Timestamp

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    const char *PyUnicode_DATA(object text) noexcept

cdef enum:
    MAX_DEPTH = 32          # tables and arrays within each other

cdef object MAX_MANTISSA = 0xFFFFFFFF
cdef object LONG = 1 << 31          # its numbers are from minus that on, and less
cdef object LONG_LONG = 1 << 63


def encode_table(table not None):
    """With its size in front. Raises ValueError, TypeError for what AMQP has no type for."""
    cdef bytearray out = bytearray()
    put_table(out, table, 0)
    return bytes(out)


def decode_table(bytes data not None):
    """Raises ProtocolError for anything that is not one table, to its last octet."""
    cdef Cursor cursor
    cursor.at = <const uint8_t *>PyBytes_AS_STRING(data)
    cursor.end = cursor.at + PyBytes_GET_SIZE(data)
    table = take_table(&cursor, 0)
    if cursor.at != cursor.end:
        raise ProtocolError(errors.SYNTAX_ERROR, "there is something behind a table")
    return table


# Reading

cdef const uint8_t *take(Cursor *cursor, Py_ssize_t size) except NULL:
    """The next octets, which are there."""
    cdef const uint8_t *at = cursor.at
    if cursor.end - at < size:
        raise ProtocolError(errors.SYNTAX_ERROR, "something ends too early")
    cursor.at = at + size
    return at


cdef str take_short_string(Cursor *cursor):
    cdef Py_ssize_t size = take(cursor, 1)[0]
    cdef const char *text = <const char *>take(cursor, size)
    return text[:size].decode("utf-8", "surrogateescape")


cdef bytes take_long_string(Cursor *cursor):
    cdef Py_ssize_t size = get32(take(cursor, 4))
    return PyBytes_FromStringAndSize(<const char *>take(cursor, size), size)


cdef Cursor take_part(Cursor *cursor, int depth) except *:
    """What has its size in front: a table or an array."""
    cdef Cursor part
    cdef Py_ssize_t size = get32(take(cursor, 4))
    if depth > MAX_DEPTH:
        raise ProtocolError(errors.SYNTAX_ERROR, f"more than {MAX_DEPTH} tables within each other")
    part.at = take(cursor, size)
    part.end = cursor.at
    return part


cdef dict take_table(Cursor *cursor, int depth):
    cdef Cursor part = take_part(cursor, depth)
    cdef dict table = {}
    while part.at != part.end:
        name = take_short_string(&part)
        table[name] = take_value(&part, depth)
    return table


cdef list take_array(Cursor *cursor, int depth):
    cdef Cursor part = take_part(cursor, depth)
    cdef list values = []
    while part.at != part.end:
        values.append(take_value(&part, depth))
    return values


cdef object take_value(Cursor *cursor, int depth):
    cdef uint8_t kind = take(cursor, 1)[0]
    if kind == c"S":
        return take_long_string(cursor).decode("utf-8", "surrogateescape")
    if kind == c"t":
        return take(cursor, 1)[0] != 0
    if kind == c"F":
        return take_table(cursor, depth + 1)
    if kind == c"A":
        return take_array(cursor, depth + 1)
    if kind == c"V":
        return None
    if kind == c"x":
        return take_long_string(cursor)
    if kind == c"T":
        return Timestamp(get64(take(cursor, 8)))
    return take_number(cursor, kind)


cdef object take_number(Cursor *cursor, uint8_t kind):
    if kind == c"I":
        return <int32_t>get32(take(cursor, 4))
    if kind == c"l" or kind == c"L":
        return <int64_t>get64(take(cursor, 8))
    if kind == c"i":
        return get32(take(cursor, 4))
    if kind == c"b":
        return <int8_t>take(cursor, 1)[0]
    if kind == c"B":
        return take(cursor, 1)[0]
    if kind == c"s":
        return <int16_t>get16(take(cursor, 2))
    if kind == c"u":
        return get16(take(cursor, 2))
    if kind == c"d":
        return take_double(cursor)
    if kind == c"f":
        return take_float(cursor)
    if kind == c"D":
        return take_decimal(cursor)
    raise ProtocolError(errors.SYNTAX_ERROR, f"a field of a table has the type {kind}, which is not known")


cdef double take_double(Cursor *cursor) except? -1:
    cdef uint64_t bits = get64(take(cursor, 8))
    cdef double value
    memcpy(&value, &bits, sizeof(value))
    return value


cdef double take_float(Cursor *cursor) except? -1:
    cdef uint32_t bits = get32(take(cursor, 4))
    cdef float value
    memcpy(&value, &bits, sizeof(value))
    return value


cdef object take_decimal(Cursor *cursor):
    cdef const uint8_t *at = take(cursor, 5)
    cdef uint32_t mantissa = get32(at + 1)
    return Decimal((0, tuple(map(int, str(mantissa))), -<int>at[0]))


# Writing

cdef int append(bytearray out, const char *octets, Py_ssize_t size) except -1:
    cdef Py_ssize_t before = PyByteArray_GET_SIZE(out)
    PyByteArray_Resize(out, before + size)
    memcpy(PyByteArray_AS_STRING(out) + before, octets, size)
    return 0


cdef int put_number(bytearray out, uint64_t value, int size) except -1:
    cdef uint8_t octets[8]
    put64(octets, value)
    return append(out, <char *>octets + 8 - size, size)


cdef int put_long_string(bytearray out, bytes text) except -1:
    put_number(out, len(text), 4)
    return append(out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef int put_short_string(bytearray out, str text) except -1:
    """Raises ValueError."""
    cdef bytes octets
    if PyUnicode_IS_COMPACT_ASCII(text) and len(text) <= 255:  # as most are
        put_number(out, len(text), 1)
        return append(out, <const char *>PyUnicode_DATA(text), len(text))
    octets = text.encode("utf-8", "surrogateescape")
    if len(octets) > 255:
        raise ValueError(f"{text[:40]!r}... has {len(octets)} octets; AMQP has room for 255")
    put_number(out, len(octets), 1)
    return append(out, PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))


cdef int put_table(bytearray out, table, int depth) except -1:
    cdef Py_ssize_t begin = begin_part(out, depth)
    for name, value in table.items():
        if not isinstance(name, str):
            raise TypeError(f"names in a table are str, not {type(name).__name__}")
        put_short_string(out, name)
        put_value(out, value, depth)
    return end_part(out, begin)


cdef int put_array(bytearray out, values, int depth) except -1:
    cdef Py_ssize_t begin = begin_part(out, depth)
    for value in values:
        put_value(out, value, depth)
    return end_part(out, begin)


cdef Py_ssize_t begin_part(bytearray out, int depth) except -1:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} tables within each other")
    put_number(out, 0, 4)
    return len(out)


cdef int end_part(bytearray out, Py_ssize_t begin) except -1:
    """Its size is known now."""
    cdef Py_ssize_t size = len(out) - begin
    if size > 0xFFFFFFFF:
        raise ValueError("a table is too large")
    put32(<uint8_t *>PyByteArray_AS_STRING(out) + begin - 4, <uint32_t>size)
    return 0


cdef int put_value(bytearray out, value, int depth) except -1:
    if isinstance(value, str):
        append(out, "S", 1)
        put_long_string(out, (<str>value).encode("utf-8", "surrogateescape"))
    elif isinstance(value, bool):
        out += b"t\1" if value else b"t\0"
    elif isinstance(value, Timestamp):
        if not 0 <= value < 2 * LONG_LONG:
            raise ValueError(f"AMQP has no room for the time {value}")
        out += b"T"
        put_number(out, value, 8)
    elif isinstance(value, int):
        put_integer(out, value)
    elif isinstance(value, dict):
        out += b"F"
        put_table(out, value, depth + 1)
    elif isinstance(value, (list, tuple)):
        out += b"A"
        put_array(out, value, depth + 1)
    elif value is None:
        out += b"V"
    else:
        put_other(out, value)
    return 0


cdef int put_integer(bytearray out, value) except -1:
    if -LONG <= value < LONG:
        append(out, "I", 1)
        put_number(out, <uint64_t><int64_t>value, 4)
    elif -LONG_LONG <= value < LONG_LONG:
        out += b"l"
        put_number(out, <uint64_t><int64_t>value, 8)
    else:
        raise ValueError(f"AMQP has room for 64 bits, not for {value}")
    return 0


cdef int put_other(bytearray out, value) except -1:
    cdef uint64_t bits
    cdef double number
    if isinstance(value, float):
        number = value
        memcpy(&bits, &number, sizeof(bits))
        out += b"d"
        put_number(out, bits, 8)
    elif isinstance(value, bytes):
        out += b"x"
        put_long_string(out, value)
    elif isinstance(value, Decimal):
        put_decimal(out, value)
    else:
        raise TypeError(f"AMQP has no type for {type(value).__name__}")
    return 0


cdef int put_decimal(bytearray out, value) except -1:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or sign or not -255 <= exponent <= 0:
        raise ValueError(f"AMQP has no room for {value}")
    mantissa = int("".join(map(str, digits)))
    if mantissa > MAX_MANTISSA:
        raise ValueError(f"AMQP has no room for {value}")
    out += b"D"
    put_number(out, <uint64_t>-exponent, 1)
    put_number(out, mantissa, 4)
    return 0
