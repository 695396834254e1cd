"""One message as it comes in by SMTP, between DATA and the line that ends it."""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memchr, memcmp, memcpy

import re

from . import syntax
from .content import with_crlf
from .syntax import ReplyError

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t size, const void *part, size_t part_size) noexcept

cdef enum:
    MAX_HOPS = 100          # so many servers a message may have passed (RFC 5321, 6.3): in more there is a loop

cdef str TOO_BIG = f"452 {syntax.NO_MEMORY}"
cdef bytes OURS = b"(mqcore "   # in the Received lines of all servers of this kind

cdef object HOPS = re.compile(rb"\r\nreceived[ \t]*:", re.IGNORECASE)
cdef object HOPS_WHOLE = re.compile(rb"\r\nreceived[ \t]*:[^\r]*(?:\r\n[ \t][^\r]*)*", re.IGNORECASE)


@cython.final
cdef class DataReceiver:
    """Collects the message, finds its end, and then gives it as it was before it was made ready for SMTP.

    Only CR LF, dot, CR LF ends it. Whatever else another server could take for its end (SMTP smuggling) has a CR or LF
    that stands alone, for which the message as a whole is refused; or, if this is `lenient`, such a LF becomes CR LF and a CR
    a blank. Sizes are in octets.

    `size`: what has come so far, as it was sent, without what may belong to the line that ends it.
    `fault`: the reply that it will be refused with, as far as is known before its end.
    `loops`: how many of its `Received` lines have `trace` in them, known from `finish` on; `max_loops` may.
    `hops`: how many are of any server of this kind, where there is a `trace`.
    """

    def __cinit__(self):
        self.trace = b""
        self.text = PyByteArray_FromStringAndSize(b"\r\n", 2)  # so that its first line is like any other
        self.line = 2

    def __init__(self, Py_ssize_t max_size, bytes trace not None=b"", Py_ssize_t max_loops=0, bint lenient=False):
        self.max_size = max_size
        self.trace = trace
        self.max_loops = max_loops
        self.lenient = lenient

    def refuse(self, str reply not None):
        """Keep nothing of it."""
        if self.fault is None:
            self.fault = reply
        self.discard()

    cdef int discard(self) except -1:
        cdef Py_ssize_t most = len(self.text) - 5  # the line that ends it may have begun
        if most > 0:
            self.discarded += most
            del self.text[:most]
            self.line = max(self.line - most, 0)  # 0: a line with more before, which is too long to be the last
        return 0

    def take(self, bytes data not None):
        """How much of `data` belongs to the message, if its end is there; None if all does, and more must come."""
        cdef Py_ssize_t taken = self.collect(data, len(data))
        return taken if taken > 0 else None

    cdef Py_ssize_t collect(self, const char *data, Py_ssize_t size) except -1:
        """What `take` does; 0 if more must come."""
        self.grow(size)
        cdef Py_ssize_t before = len(self.text) - size, end
        memcpy(PyByteArray_AS_STRING(self.text) + before, data, size)
        cdef bint ended = self.look(before)
        end = self.line + 3
        if ended:
            PyByteArray_Resize(self.text, self.line)
        self.size = len(self.text) + self.discarded - (2 if ended else 4)
        if self.size > self.max_size:
            self.refuse(f"552 5.3.4 a message may have {self.max_size} octets")
        if ended:
            return end - before
        if self.fault is not None:
            self.discard()
        return 0

    cdef int grow(self, Py_ssize_t size) except -1:
        """Make room for so much more; without what there is, if there is no memory for both."""
        cdef Py_ssize_t before = len(self.text), gone = max(before - 5, 0)  # as `discard` has it
        cdef char[5] kept
        if before == 0:  # there was not even memory for these five, and there is no message any more
            raise MemoryError
        memcpy(kept, PyByteArray_AS_STRING(self.text) + gone, before - gone)
        try:
            PyByteArray_Resize(self.text, before + size)
        except MemoryError:
            # CPython 3.15.0 has emptied it (python/cpython#157242).
            self.discarded += gone
            self.line = max(self.line - gone, 0)
            self.text = PyByteArray_FromStringAndSize(kept, before - gone)
            self.refuse(TOO_BIG)
            PyByteArray_Resize(self.text, len(self.text) + size)
        return 0

    cdef bint look(self, Py_ssize_t at) noexcept:
        """Go through the lines whose ends are from `at` on; whether there is the one that ends the message."""
        cdef const char *text = PyByteArray_AS_STRING(self.text)
        cdef const char *last = text + PyByteArray_GET_SIZE(self.text)
        cdef const char *line = text + self.line
        cdef const char *end = <const char *>memchr(text + at, c"\n", last - text - at)
        while end != NULL:
            end += 1
            if end - line == 3 and memcmp(line - 2, b"\r\n.\r\n", 5) == 0:
                break
            if <const char *>memchr(line, c"\r", end - line) != end - 2:
                self.stray = True
            self.dots |= line[0] == c"."
            if end - line == 2 and self.head == 0:
                self.head = line - text
            self.lines += 1
            line = end
            end = <const char *>memchr(line, c"\n", last - line)
        self.line = line - text
        return end != NULL

    @property
    def is_endless(self):
        """Whether it is far beyond all limits, so that it is no use to wait for its end."""
        return self.size > 3 * self.max_size

    cpdef bytes finish(self):
        """The message, once `take` has found its end. Raises ReplyError, with the reply, if it is not to be taken."""
        self.check()
        try:
            return self.below(b"")
        except MemoryError:
            raise ReplyError(TOO_BIG) from None

    cdef int check(self) except -1:
        """Raises ReplyError if it is not to be taken."""
        if self.fault is not None:
            raise ReplyError(self.fault)
        if self.stray and not self.lenient:
            raise ReplyError("554 5.6.0 lines of a message end in CR LF, and neither may stand alone")
        if self.stray:
            self.straighten()
        return self.count_loops()

    cdef int straighten(self) except -1:
        """Make each LF a CR LF, and each CR that stands alone a blank. The dots that SMTP put before lines go first: those
        that are behind a lone LF belong to the message."""
        try:
            self.text = with_crlf(self.text.replace(b"\r\n.", b"\r\n"))
        except MemoryError:
            raise ReplyError(TOO_BIG) from None
        self.dots = self.stray = False
        self.head = self.text.find(b"\r\n\r\n") + 2
        if self.head == 1:
            self.head = 0
        self.lines = self.text.count(b"\n") - 1
        return 0

    cdef int count_loops(self) except -1:
        cdef Py_ssize_t end = self.head or len(self.text)
        if self.lines > MAX_HOPS and len(HOPS.findall(self.text, 0, end)) > MAX_HOPS:
            raise ReplyError(f"554 5.4.6 this mail goes round in a loop: it has more than {MAX_HOPS} Received lines")
        if not self.trace or memmem(PyByteArray_AS_STRING(self.text), end, PyBytes_AS_STRING(OURS), len(OURS)) == NULL:
            return 0
        for line in HOPS_WHOLE.findall(self.text, 0, end):
            self.hops += OURS in line
            self.loops += self.trace in line
        if self.loops > self.max_loops:
            raise ReplyError(f"554 5.4.6 this mail goes round in a loop: it was here {self.loops} times before")
        return 0

    cdef bytes below(self, bytes top):
        """The message with `top` above it."""
        cdef bytearray text = self.text
        if self.dots:
            text = text.replace(b"\r\n.", b"\r\n")
        cdef Py_ssize_t above = len(top), size = len(text) - 2
        cdef bytes message = PyBytes_FromStringAndSize(NULL, above + size)
        memcpy(PyBytes_AS_STRING(message), PyBytes_AS_STRING(top), above)
        memcpy(PyBytes_AS_STRING(message) + above, PyByteArray_AS_STRING(text) + 2, size)
        return message


cdef DataReceiver new_receiver(Py_ssize_t max_size, bytes trace, Py_ssize_t max_loops, bint lenient):
    """What `DataReceiver` makes of these."""
    cdef DataReceiver receiver = DataReceiver.__new__(DataReceiver)
    receiver.max_size = max_size
    receiver.trace = trace
    receiver.max_loops = max_loops
    receiver.lenient = lenient
    return receiver
