"""What a message says of a mail that is its body as it is."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy
from libc.time cimport time

from ...amqp._tables cimport put_number, put_short_string, put_table
from ...amqp._wire cimport get16, get32, get64, put8, put16, put32, put64

from . import body

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    const char *PyUnicode_DATA(object text) noexcept
    object PyUnicode_New(Py_ssize_t size, Py_ssize_t highest)

cdef str RAW = body.RAW
cdef str ENVELOPE = "envelope"
cdef str RECIPIENT = "recipient"

cdef const char *RAW_FIELD = b"\x0emessage/rfc822"
cdef const char *ATTEMPT_FIELD = b"\x10x-mqcore-attemptI\0\0\0\x01"
cdef const char *APP_FIELD = b"\x06mqcore"

cdef enum:
    CONTENT_TYPE = 1 << 15
    CONTENT_ENCODING = 1 << 14
    HEADERS = 1 << 13
    DELIVERY_MODE = 1 << 12
    PRIORITY = 1 << 11
    CORRELATION_ID = 1 << 10        # and reply_to, expiration below it are texts
    MESSAGE_ID = 1 << 7
    TIMESTAMP = 1 << 6
    TYPE = 1 << 5                   # likewise, with user_id, app_id
    CLUSTER_ID = 1 << 2
    FLAGS = 0xB0C8                  # of what is written: content_type, headers, delivery_mode, message_id, timestamp, app_id

    RAW_SIZE = 15                   # of the fields above
    ATTEMPT_SIZE = 22
    APP_SIZE = 7
    SHORT = 255
    MOST_HEADERS = 16               # of what is written in the short way


def known_by_headers(headers not None):
    """What is known of such a mail: all headers but those that begin with x-."""
    cdef dict known = {}
    cdef str name
    for name, value in headers.items():
        if len(name) < 2 or name[1] != u"-" or name[0] not in u"xX":
            known[name] = value
    return known


# Reading

cdef bint scan_raw(bytes header, RawFields *fields) except -1:
    """Whether `read_raw` can tell what is known, and there is nothing in it that has to be looked at before plugins do."""
    return read_fields(header, fields, None)


cdef dict read_raw(bytes header):
    """What is known of a mail by headers that are texts in ASCII of one line, as nearly all are. Of anything else, and of what
    is no such mail at all, nothing is said here: None."""
    cdef RawFields fields
    cdef dict known = {}
    return known if read_fields(header, &fields, known) else None


cdef bint read_fields(bytes header, RawFields *fields, dict known) except -1:
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(header)
    cdef const uint8_t *end = p + PyBytes_GET_SIZE(header)
    cdef unsigned int flags, flag
    fields.table = NULL
    fields.table_size = 0
    fields.message_id = NULL
    fields.has_timestamp = False
    if end - p < 2 + RAW_SIZE:
        return False
    flags = get16(p)
    if flags & CONTENT_ENCODING or not flags & CONTENT_TYPE or flags & 3 or memcmp(p + 2, RAW_FIELD, RAW_SIZE) != 0:
        return False
    p += 2 + RAW_SIZE
    if flags & HEADERS:
        fields.table = <const char *>p + 4
        p = read_headers(p, end, known)
        if p != NULL:
            fields.table_size = <const char *>p - fields.table
    if p != NULL and flags & DELIVERY_MODE:
        p = skip(p, end, 1)
    if p != NULL and flags & PRIORITY:
        p = skip(p, end, 1)
    flag = CORRELATION_ID
    while p != NULL and flag > MESSAGE_ID:
        if flags & flag:
            p = skip_text(p, end)
        flag >>= 1
    if p != NULL and flags & MESSAGE_ID:
        fields.message_id = <const char *>p + 1
        p = skip_text(p, end)
        if p != NULL:
            fields.message_id_size = <const char *>p - fields.message_id
    if p != NULL and flags & TIMESTAMP:
        if end - p < 8:
            return False
        fields.timestamp = get64(p)
        fields.has_timestamp = True
        p += 8
    flag = TYPE
    while p != NULL and flag >= CLUSTER_ID:
        if flags & flag:
            p = skip_text(p, end)
        flag >>= 1
    return p == end


cdef const uint8_t *read_headers(const uint8_t *p, const uint8_t *end, dict known) except? NULL:
    """What stands behind the table, or NULL. `known`: None if nobody wants to know it yet."""
    cdef const uint8_t *table
    cdef const char *name
    cdef Py_ssize_t name_size, size
    if end - p < 4 or <uint32_t>(end - p - 4) < get32(p):
        return NULL
    table = p + 4 + get32(p)
    p += 4
    while p < table:
        name_size = p[0]
        name = <const char *>p + 1
        p += 1 + name_size
        if table - p < 5:
            return NULL
        if is_ours(name, name_size):
            p = skip_ours(p, table)
            if p == NULL:
                return NULL
            continue
        if p[0] != c"S" or <uint32_t>(table - p - 5) < get32(p + 1) or not is_plain(name, name_size):
            return NULL
        size = get32(p + 1)
        if not is_plain(<const char *>p + 5, size):
            return NULL
        if known is not None:
            known[key_of(name, name_size)] = text_of(<const char *>p + 5, size)
        elif is_special(name, name_size):
            return NULL
        p += 5 + size
    return table if p == table else NULL


cdef bint is_ours(const char *name, Py_ssize_t size) noexcept:
    """Or another's, that is of no mail."""
    return size >= 2 and name[1] == c"-" and (name[0] == c"x" or name[0] == c"X")


cdef bint is_special(const char *name, Py_ssize_t size) noexcept:
    """Whether it may be the reason why there is no mail for plugins, or says when it came."""
    return (size == 8 and memcmp(name, b"received", 8) == 0 or size == 10 and memcmp(name, b"recipients", 10) == 0
            or size == 11 and memcmp(name, b"nextattempt", 11) == 0)


cdef const uint8_t *skip_ours(const uint8_t *p, const uint8_t *end) noexcept:
    """A value; NULL for one that is seldom, or is not there as a whole."""
    if p[0] == c"I":
        return skip(p, end, 5)
    if p[0] == c"l":
        return skip(p, end, 9)
    if p[0] == c"t":
        return skip(p, end, 2)
    if p[0] == c"S" and <uint32_t>(end - p - 5) >= get32(p + 1):
        return p + 5 + get32(p + 1)
    return NULL


cdef const uint8_t *skip(const uint8_t *p, const uint8_t *end, Py_ssize_t size) noexcept:
    return p + size if end - p >= size else NULL


cdef const uint8_t *skip_text(const uint8_t *p, const uint8_t *end) noexcept:
    return p + 1 + p[0] if p < end and end - p > p[0] else NULL


cdef bint is_plain(const char *text, Py_ssize_t size) noexcept:
    """ASCII, one line."""
    cdef Py_ssize_t place
    cdef uint8_t seen = 0
    for place in range(size):  # without a branch, so that many are looked at together
        seen |= <uint8_t>text[place] | -(text[place] == c"\r" or text[place] == c"\n")
    return seen < 0x80


cdef str key_of(const char *name, Py_ssize_t size):
    if size == 8 and memcmp(name, b"envelope", 8) == 0:
        return ENVELOPE
    if size == 9 and memcmp(name, b"recipient", 9) == 0:
        return RECIPIENT
    return text_of(name, size)


cdef str text_of(const char *text, Py_ssize_t size):
    cdef str made = PyUnicode_New(size, 127)
    memcpy(<char *>PyUnicode_DATA(made), text, size)
    return made


# Writing

cdef bytes write_raw(known, str id):
    """What `encode_raw` gives."""
    cdef PyObject *keys[MOST_HEADERS]
    cdef PyObject *values[MOST_HEADERS]
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t place = 0, size = 0, count = 0, i
    cdef bytes out
    cdef uint8_t *p
    if type(known) is not dict or len(<dict>known) > MOST_HEADERS or not is_short(id) or "priority" in <dict>known:
        return encode_raw(known, id)
    while PyDict_Next(known, &place, &key, &value):
        if <object>value is None:
            continue
        if not is_short(<object>key) or not is_ascii(<object>value) or is_ours(PyUnicode_DATA(<object>key), len(<str>key)):
            return encode_raw(known, id)
        keys[count] = key
        values[count] = value
        count += 1
        size += 6 + len(<str>key) + len(<str>value)
    size += ATTEMPT_SIZE
    out = PyBytes_FromStringAndSize(NULL, 2 + RAW_SIZE + 4 + size + 1 + 1 + len(id) + 8 + APP_SIZE)
    p = put16(<uint8_t *>PyBytes_AS_STRING(out), FLAGS)
    p = put_octets(p, RAW_FIELD, RAW_SIZE)
    p = put32(p, <uint32_t>size)
    for i in range(count):
        p = put_short(p, <str>keys[i])
        p = put32(put8(p, c"S"), <uint32_t>len(<str>values[i]))
        p = put_octets(p, PyUnicode_DATA(<object>values[i]), len(<str>values[i]))
    p = put_octets(p, ATTEMPT_FIELD, ATTEMPT_SIZE)
    p = put_short(put8(p, 2), id)
    p = put64(p, time(NULL))
    put_octets(p, APP_FIELD, APP_SIZE)
    return out


cdef bytes pass_on_raw(bytes header, str id):
    """As `write_raw`, of a mail of which nobody has changed what is known: `scan_raw` has looked at its header."""
    cdef RawFields fields
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef const uint8_t *value
    cdef uint8_t *to
    cdef uint8_t *table
    cdef Py_ssize_t size
    cdef bytes out
    read_fields(header, &fields, None)
    p = <const uint8_t *>fields.table
    end = p + fields.table_size
    # Those of ours that were there leave their room; what is not needed in the end is cut off.
    out = PyBytes_FromStringAndSize(NULL, 2 + RAW_SIZE + 4 + fields.table_size + ATTEMPT_SIZE + 2 + len(id) + 8 + APP_SIZE)
    to = put16(<uint8_t *>PyBytes_AS_STRING(out), FLAGS)
    table = put_octets(to, RAW_FIELD, RAW_SIZE)
    to = table + 4
    while p < end:
        value = p + 1 + p[0]
        if is_ours(<const char *>p + 1, p[0]):
            p = skip_ours(value, end)
        else:
            size = value + 5 + get32(value + 1) - p
            to = put_octets(to, <const char *>p, size)
            p += size
    to = put_octets(to, ATTEMPT_FIELD, ATTEMPT_SIZE)
    put32(table, <uint32_t>(to - table - 4))
    to = put_short(put8(to, 2), id)
    to = put_octets(put64(to, time(NULL)), APP_FIELD, APP_SIZE)
    size = to - <uint8_t *>PyBytes_AS_STRING(out)
    return out if size == PyBytes_GET_SIZE(out) else out[:size]


cdef inline bint is_ascii(object text) noexcept:
    return type(text) is str and PyUnicode_IS_COMPACT_ASCII(text)


cdef inline bint is_short(object text) except -1:
    return is_ascii(text) and len(<str>text) <= SHORT


cdef inline uint8_t *put_octets(uint8_t *p, const char *octets, Py_ssize_t size) noexcept:
    memcpy(p, octets, size)
    return p + size


cdef inline uint8_t *put_short(uint8_t *p, str text) except NULL:
    return put_octets(put8(p, <unsigned int>len(text)), PyUnicode_DATA(text), len(text))


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
