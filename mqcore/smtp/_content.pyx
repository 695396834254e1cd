"""A mail as it is sent by SMTP: see `content`, of which this is what is done for each."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy


cpdef bytes make_content(bytes mime):
    """What follows the server's 354, with the line that ends it.

    Whatever the mail has in it, no server can take a part of it for its end (SMTP smuggling): each line end, CR LF or LF,
    becomes CR LF, a CR anywhere else becomes a blank, and a dot that begins a line gets a second one. A last line without
    an end is given one.
    """
    if mime is None:
        raise TypeError("the content is made of bytes, not None")
    cdef const char *text = PyBytes_AS_STRING(mime)
    cdef const char *end = text + PyBytes_GET_SIZE(mime)
    cdef const char *line = text
    cdef const char *next
    cdef Py_ssize_t size = 3
    while line < end:
        next = find_end(line, end)
        size += (line[0] == c".") + length_of(line, next, end) + 2
        line = next + 1
    cdef bytes content = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(content)
    cdef bint has_cr = memchr(text, c"\r", end - text) != NULL
    line = text
    while line < end:
        next = find_end(line, end)
        if line[0] == c".":
            at = append(at, b".", 1)
        size = length_of(line, next, end)
        if has_cr:
            at = append_without_cr(at, line, size)
        else:
            at = append(at, line, size)
        at = append(at, b"\r\n", 2)
        line = next + 1
    append(at, b".\r\n", 3)
    return content


cdef inline const char *find_end(const char *line, const char *end) noexcept:
    """Its LF, or the end of all."""
    cdef const char *found = <const char *>memchr(line, c"\n", end - line)
    return end if found == NULL else found


cdef inline Py_ssize_t length_of(const char *line, const char *next, const char *end) noexcept:
    """Without the CR of a CR LF."""
    return next - line - (line < next < end and next[-1] == c"\r")


cdef inline char *append(char *at, const char *text, Py_ssize_t size) noexcept:
    memcpy(at, text, size)
    return at + size


cdef char *append_without_cr(char *at, const char *text, Py_ssize_t size) noexcept:
    """With a blank for each CR."""
    cdef char *end = append(at, text, size)
    while at < end:
        at = <char *>memchr(at, c"\r", end - at)
        if at == NULL:
            break
        at[0] = c" "
        at += 1
    return end
