"""What plugins made of the mails of one transaction, kept in little memory until the sink takes it.

The mails of a transaction are one mail, for several recipients, and what plugins do to each is often the same, or little: a
header on top, a line at the end. So a mail is kept as what it begins and ends with, of another's bytes, and what is between.
What is new with each recipient, and much, goes to a file without a name once the memory for that is used.
"""

import os

cimport cython
from libc.string cimport memcmp, memcpy
from posix.unistd cimport close
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from .files import write_all

MEMORY = 64 << 20
"""Octets of changed bytes that a gateway keeps in memory. More wait in files."""

cdef enum:
    SMALL = 1 << 12         # a mail that is not larger than this is not worth it
    BLOCK = 1 << 12         # how much is compared at a time


@cython.final
cdef class Memory:
    """How much memory is in use for this, by all transactions of a gateway, which is one of so many processes of a run."""

    def __cinit__(self, int processes=1):
        self.processes = processes


@cython.final
@cython.no_gc
cdef class SpoolFile:
    """A file without a name: its room is free again when the last mail in it is gone, whatever ends the process."""

    def __cinit__(self):
        import tempfile  # takes a while, and most runs need none

        self.fd = -1
        with tempfile.TemporaryFile(buffering=0) as file:
            self.fd = os.dup(file.fileno())

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    cdef Py_ssize_t append(self, bytes data) except -1:
        """Returns where it is."""
        cdef Py_ssize_t at = self.size
        os.lseek(self.fd, at, os.SEEK_SET)
        write_all(self.fd, data)
        self.size = at + len(data)
        return at

    cdef bytes read(self, Py_ssize_t at, Py_ssize_t size):
        parts = []
        while size:
            part = os.pread(self.fd, size, at)
            if not part:
                raise OSError("a spool file is shorter than what was written to it")
            parts.append(part)
            at += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@cython.final
@cython.no_gc
cdef class Spooled:
    """The bytes of a mail, in the form in which they wait."""

    def __dealloc__(self):
        if self.middle is not None:
            self.memory.used -= self.size

    cdef Py_ssize_t length(self) noexcept:
        return self.head + self.size + self.tail

    cdef bytes read(self):
        if not self.head and not self.tail:
            return self.file.read(self.at, self.size) if self.middle is None else self.middle
        return self.part(0, self.length())

    cdef bytes part(self, Py_ssize_t start, Py_ssize_t stop):
        """Those from `start` to `stop`."""
        cdef Py_ssize_t end = self.head + self.size  # of the middle
        cdef Py_ssize_t first = min(max(start, self.head), end), last = max(min(stop, end), first)
        cdef Py_ssize_t skipped
        cdef bytes middle = self.middle
        if middle is None and first < last:
            middle = self.file.read(self.at + first - self.head, last - first)
        cdef bytes content = PyBytes_FromStringAndSize(NULL, stop - start)
        cdef char *to = PyBytes_AS_STRING(content)
        cdef const char *base = PyBytes_AS_STRING(self.base)
        if start < self.head:
            memcpy(to, base + start, min(stop, self.head) - start)
        if first < last:
            skipped = 0 if self.middle is None else first - self.head
            memcpy(to + first - start, PyBytes_AS_STRING(middle) + skipped, last - first)
        if stop > end:
            first = max(start, end)
            memcpy(to + first - start, base + PyBytes_GET_SIZE(self.base) - self.tail + first - end, stop - first)
        return content

    def __eq__(self, other):
        """Whether they are known to be the same bytes: then one is sent for both."""
        if not isinstance(other, Spooled):
            return NotImplemented
        return self is other or self.key() == (<Spooled>other).key()

    def __hash__(self):
        return hash(self.key())

    cdef tuple key(self):
        where = self.middle if self.middle is not None else (id(self.file), self.at)
        return id(self.base), self.head, self.tail, where


@cython.final
cdef class Spool:
    """Takes the bytes of mails that are alike."""

    def __cinit__(self, Memory memory not None):
        self.memory = memory

    cdef object take(self, bytes content):
        """What to keep for these: the same bytes, or a `Spooled`. OSError: there is no room."""
        cdef Py_ssize_t head, tail
        cdef Spooled spooled
        if self.base is None:
            self.base = content
        if content is self.base or content == self.base:
            return self.base
        if len(content) <= SMALL:
            return content
        head = count_equal(self.base, content)
        tail = count_equal_at_end(self.base, content, head)
        if head + tail >= len(content) // 2:
            return self.keep(content[head:len(content) - tail], head, tail)
        spooled = self.keep(content, 0, 0)
        if spooled.file is None:
            self.base = content  # the next ones may be as this one is
        return spooled

    cdef object take_edited(self, bytes above, bytes base, Py_ssize_t hidden):
        """The same for `above` and the octets of `base` from `hidden` on, without putting them together."""
        cdef Py_ssize_t head, tail = len(base) - hidden, size = len(above) + tail
        if self.base is None:
            self.base = base
        if base is not self.base or size <= SMALL or tail < size // 2:
            return self.take(above + base[hidden:])
        if above == base[:hidden]:
            return base
        head = count_equal(base, above)
        if head < hidden:
            tail += count_equal_at_end(base[:hidden], above, head)
        else:
            tail = min(tail, min(len(base), size) - head)
        return self.keep(above[head:size - tail], head, tail)

    cdef Spooled keep(self, bytes middle, Py_ssize_t head, Py_ssize_t tail):
        """`middle`, between the first `head` octets of the base and its last `tail`."""
        cdef Spooled spooled = Spooled.__new__(Spooled)
        spooled.head = head
        spooled.tail = tail
        spooled.base = self.base if head or tail else b""
        spooled.size = len(middle)
        if self.memory.used + spooled.size > MEMORY // self.memory.processes:
            if self.file is None:
                self.file = SpoolFile()
            spooled.at = self.file.append(middle)
            spooled.file = self.file
        else:
            self.memory.used += spooled.size
            spooled.memory = self.memory
            spooled.middle = middle
        return spooled


cdef Py_ssize_t count_equal(bytes one, bytes other) noexcept:
    """How many octets both begin with."""
    cdef const char *left = PyBytes_AS_STRING(one)
    cdef const char *right = PyBytes_AS_STRING(other)
    cdef Py_ssize_t most = min(PyBytes_GET_SIZE(one), PyBytes_GET_SIZE(other)), equal = 0
    while equal + BLOCK <= most and memcmp(left + equal, right + equal, BLOCK) == 0:
        equal += BLOCK
    while equal < most and left[equal] == right[equal]:
        equal += 1
    return equal


cdef Py_ssize_t count_equal_at_end(bytes one, bytes other, Py_ssize_t head) noexcept:
    """How many octets both end with, beside the first `head`."""
    cdef Py_ssize_t most = min(PyBytes_GET_SIZE(one), PyBytes_GET_SIZE(other)) - head, equal = 0
    cdef const char *left = PyBytes_AS_STRING(one) + PyBytes_GET_SIZE(one)
    cdef const char *right = PyBytes_AS_STRING(other) + PyBytes_GET_SIZE(other)
    while equal + BLOCK <= most and memcmp(left - equal - BLOCK, right - equal - BLOCK, BLOCK) == 0:
        equal += BLOCK
    while equal < most and left[-equal - 1] == right[-equal - 1]:
        equal += 1
    return equal
