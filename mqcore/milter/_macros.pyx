"""What a mail server says beside: macros, in a list for each stage."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memchr, memcmp

from ._wire cimport until_nul

cdef extern from "string.h":
    void *memmem(const void *where, size_t size, const void *what, size_t length) noexcept

cdef const char *STAGES = b"CH?MRTLNBE"  # the commands, at their places; ?: all others


@cython.final
cdef class Macros:
    """Those of a connection, by the stages at which they were said. `is_postfix`: whether that says so."""

    def __cinit__(self):
        self.known = [None] * PLACES
        self.next_sender = b""

    cdef int define(self, const char *data, Py_ssize_t size) except -1:
        """Lists may be empty, or odd. Those of a command come before it, and the same again before each field."""
        if size == 0:
            return 0
        cdef Place place = place_of(data[0])
        if place == SENDER_MACROS:  # what is known of the message before it is not known of this one
            self.next_sender = data[:size]
            return 0
        if place == CONNECT_MACROS:
            self.forget(0)
        cdef bytes known = <bytes>self.known[<int>place]
        if known is not None and PyBytes_GET_SIZE(known) == size and memcmp(PyBytes_AS_STRING(known), data, size) == 0:
            return 0
        cdef bytes raw = data[:size]
        self.known[<int>place] = raw
        self.merged = None
        if place == CONNECT_MACROS:
            version = macro_in(raw, b"v", False)
            self.is_postfix = version is not None and version.startswith(b"Postfix")
        return 0

    cdef str find(self, bytes name):
        cdef bytes value
        cdef int place
        for place in range(PLACES - 1, -1, -1):
            raw = self.known[place]
            if raw is not None:
                value = macro_in(<bytes>raw, name, True)
                if value is not None:
                    return text_of(value)
        return None

    cdef dict all(self):
        """All of them, by names without braces."""
        if self.merged is None:
            merged = {}
            for raw in filter(None, self.known):
                texts = texts_of((<bytes>raw)[1:])
                for name, value in zip(texts[::2], texts[1::2]):
                    merged[text_of(name.removeprefix(b"{").removesuffix(b"}"))] = text_of(value)
            self.merged = merged
        return self.merged

    cdef int begin_message(self) except -1:
        """At MAIL, whose own came before it."""
        self.forget(FIRST_OF_MESSAGE)
        self.known[<int>SENDER_MACROS] = self.next_sender
        self.next_sender = b""
        return 0

    cdef int forget(self, int first) except -1:
        """Those from this place on."""
        cdef int place
        for place in range(first, PLACES):
            self.known[place] = None
        self.merged = None
        return 0


cdef inline Place place_of(char stage) noexcept:
    cdef const char *found = <const char *>memchr(STAGES, stage, PLACES)
    return OTHER_MACROS if found == NULL else <Place>(found - STAGES)


cdef bytes macro_in(bytes raw, bytes name, bint any_braces):
    """The last value of a macro in a list, behind the letter of its stage; None: it is not there."""
    cdef const char *data = PyBytes_AS_STRING(raw)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(raw)
    cdef Py_ssize_t at = 1
    cdef Py_ssize_t start, stop, value
    cdef bytes found = None
    if memmem(data, end, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)) == NULL:  # as in most
        return None
    if end > 1 and data[end - 1] == 0:
        end -= 1
    while at < end:
        start = at
        stop = at + until_nul(data + at, end - at)
        if stop == end:
            break
        value = stop + 1
        at = value + until_nul(data + value, end - value)
        while any_braces and start < stop and is_brace(data[start]):
            start += 1
        while any_braces and start < stop and is_brace(data[stop - 1]):
            stop -= 1
        if stop - start == PyBytes_GET_SIZE(name) and memcmp(data + start, PyBytes_AS_STRING(name), stop - start) == 0:
            found = data[value:at]
        at += 1
    return found


cdef inline bint is_brace(char character) noexcept:
    return character == c"{" or character == c"}"


cdef str decoded(const char *data, Py_ssize_t size):
    """What clients send may be in any encoding, and comes back as it was."""
    return PyUnicode_DecodeUTF8(data, size, "surrogateescape")


cdef str text_of(bytes data):
    return decoded(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef list texts_of(bytes data):
    """The texts of a packet. Some programs leave out the last NUL."""
    return data.removesuffix(b"\0").split(b"\0") if data else []
