"""Fields of a header as packets have them, with a NUL between name and value, and the header that they make."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcmp, memcpy

from ._wire cimport put_number, until_nul

cdef enum:
    INSERTION = 11  # octets of a packet that puts a field on top, beside its name and its value


cdef Py_ssize_t split_field(const char *data, Py_ssize_t size, Py_ssize_t *name) noexcept:
    """How long the value in a packet is, and the name before the NUL in front of it."""
    if size and data[size - 1] == 0:
        size -= 1
    name[0] = until_nul(data, size)
    return size - name[0] - 1 if name[0] < size else 0


cdef Py_ssize_t write_head(const char *fields, Py_ssize_t size, char *to) noexcept:
    """The header that these fields make, with the empty line: how many octets that are, which are written to `to` unless that
    is NULL."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t written = 0
    cdef Py_ssize_t name, value
    cdef uint32_t length
    while at < size:
        memcpy(&length, fields + at, 4)
        at += 4
        value = split_field(fields + at, length, &name)
        if to != NULL:
            memcpy(to + written, fields + at, name)
            to[written + name] = c":"
        written += name + 1
        if value:
            written += write_value(fields + at + name + 1, value, NULL if to == NULL else to + written)
        if to != NULL:
            to[written] = c"\r"
            to[written + 1] = c"\n"
        written += 2
        at += length
    if to != NULL:
        to[written] = c"\r"
        to[written + 1] = c"\n"
    return written + 2


cdef Py_ssize_t write_value(const char *value, Py_ssize_t size, char *to) noexcept:
    """With a CR before each LF."""
    cdef Py_ssize_t written = 0
    cdef Py_ssize_t index
    if memchr(value, c"\n", size) == NULL:
        if to != NULL:
            memcpy(to, value, size)
        return size
    for index in range(size):
        if value[index] == c"\n" and (index == 0 or value[index - 1] != c"\r"):
            if to != NULL:
                to[written] = c"\r"
            written += 1
        if to != NULL:
            to[written] = value[index]
        written += 1
    return written


cdef bint is_first_field(bytes fields, const char *field, Py_ssize_t name, Py_ssize_t value) noexcept:
    """Whether the first one is the same as this, which has a colon between its name and its value."""
    cdef const char *data = PyBytes_AS_STRING(fields)
    cdef uint32_t length
    cdef Py_ssize_t own_name, own_value
    if PyBytes_GET_SIZE(fields) < 4:
        return False
    memcpy(&length, data, 4)
    own_value = split_field(data + 4, length, &own_name)
    return (own_name == name and own_value == value and memcmp(data + 4, field, name) == 0
            and memcmp(data + 5 + name, field + name + 1, value) == 0)


cdef Py_ssize_t find_line(const char *text, Py_ssize_t size, Py_ssize_t *name, Py_ssize_t *value) noexcept:
    """The field that stands here in one line, without its line end: how many octets it takes with that. 0: there is none."""
    cdef const char *found = <const char *>memchr(text, c"\n", size)
    cdef Py_ssize_t stop, end
    if found == NULL:
        return 0
    stop = found - text + 1
    end = stop - 1
    if end and text[end - 1] == c"\r":
        end -= 1
    if stop < size and (text[stop] == c" " or text[stop] == c"\t"):
        return 0
    name[0] = 0
    while name[0] < end and text[name[0]] != c":":
        if <unsigned char>text[name[0]] <= 0x20 or text[name[0]] == 0x7f:
            return 0
        name[0] += 1
    if name[0] == 0 or name[0] == end or memchr(text, 0, end) != NULL:
        return 0
    value[0] = end - name[0] - 1
    return stop


cdef bytes insertions(bytes fields, bytes top, bytes ending):
    """The packets that put `top` above these fields, one after the other, and then the ending. None: it is not that simple."""
    cdef const char *text = PyBytes_AS_STRING(top)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(top)
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t needed = 0
    cdef Py_ssize_t name, value, stop
    while at < size:
        stop = find_line(text + at, size - at, &name, &value)
        if stop == 0:
            return None
        if at == 0 and is_first_field(fields, text, name, value):  # then it may be another one of them that is new
            return None
        needed += name + value + INSERTION
        at += stop
    cdef bytes made = PyBytes_FromStringAndSize(NULL, needed + PyBytes_GET_SIZE(ending))
    cdef char *to = PyBytes_AS_STRING(made) + needed
    memcpy(to, PyBytes_AS_STRING(ending), PyBytes_GET_SIZE(ending))
    at = 0
    while at < size:  # each of them on top of those that were said before it: so the last comes first
        stop = find_line(text + at, size - at, &name, &value)
        to -= name + value + INSERTION
        write_insertion(to, text + at, name, value)
        at += stop
    return made


cdef inline void write_insertion(char *to, const char *field, Py_ssize_t name, Py_ssize_t value) noexcept:
    """The packet that puts it on top."""
    put_number(to, <uint32_t>(name + value + INSERTION - 4))
    to[4] = c"i"
    put_number(to + 5, 1)
    memcpy(to + 9, field, name)
    to[9 + name] = 0
    memcpy(to + 10 + name, field + name + 1, value)
    to[10 + name + value] = 0
