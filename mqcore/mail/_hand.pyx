"""Which mails plugins or the sink have now: if one of them ends this process, another one can tell which.

A mail is known by a digest of its bytes as its sender had them, so that it is known again when it is sent again, to any process
of the run. `seed` is the run's own, and secret, so that nobody makes a mail that is taken for another's.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memchr, memcpy
from ._mail cimport Mail

cdef enum:
    PART = 256                  # octets at the beginning, and at the end, that make the digest
    LANES = 4                   # that a processor can be at together

cdef uint64_t FACTOR = 0x9E3779B97F4A7C15


@cython.final
@cython.no_gc_clear  # which would let go the memory while it is in use
cdef class Hand:
    """`memory`: an mmap, all zeros from `begin` on, with room there for a digest (8 octets) of each transaction that may be in
    flight. One for which there is none left is not told of."""

    def __cinit__(self, memory not None, Py_ssize_t begin, uint64_t seed):
        cdef Py_ssize_t place
        PyObject_GetBuffer(memory, &self.shared, PyBUF_WRITABLE)
        self.is_shared = True
        if begin < 0 or begin % sizeof(uint64_t) or begin > self.shared.len:
            raise ValueError(f"nothing can begin at octet {begin} of {self.shared.len}")
        self.size = self.left = (self.shared.len - begin) // <Py_ssize_t>sizeof(uint64_t)
        self.digests = <uint64_t *>(<char *>self.shared.buf + begin)
        self.free = <unsigned int *>PyMem_Malloc(max(1, self.size) * sizeof(unsigned int))
        if self.free == NULL:
            raise MemoryError
        for place in range(self.size):
            self.free[place] = self.size - 1 - place
        self.seed = seed
        self.suspects = frozenset()
        self.refused = frozenset()

    def __dealloc__(self):
        PyMem_Free(self.free)
        if self.is_shared:
            PyBuffer_Release(&self.shared)

    cdef bint must_wait(self, Transaction transaction, Py_ssize_t in_flight) except -1:
        """Whether it may not begin beside what is in flight."""
        if self.alone is not None:
            return True
        return in_flight > 0 and self.suspects and self.digest_of(transaction) in self.suspects

    cdef bint is_refused(self, Transaction transaction) except -1:
        return self.refused and self.digest_of(transaction) in self.refused

    cdef int take(self, Transaction transaction) except -1:
        cdef uint64_t digest = self.digest_of(transaction)
        if self.suspects and digest in self.suspects:
            self.alone = transaction
        if self.left:
            self.left -= 1
            transaction.place = self.free[self.left] + 1
            self.digests[transaction.place - 1] = digest
        return 0

    cdef int leave(self, Transaction transaction) except -1:
        if transaction.place:
            self.digests[transaction.place - 1] = 0
            self.free[self.left] = transaction.place - 1
            self.left += 1
            transaction.place = 0
        if self.alone is transaction:
            self.alone = None
            self.survived(transaction.digest)
        return 0

    cdef uint64_t digest_of(self, Transaction transaction) except? 0:
        """Never 0."""
        cdef bytes mime
        if not transaction.digest:
            origin = (<Mail>transaction.mails[0]).origin
            mime = origin.mime
            transaction.digest = digest(PyBytes_AS_STRING(mime), len(mime), origin.is_traced, self.seed) or 1
        return transaction.digest


cdef uint64_t digest(const char *data, Py_ssize_t size, bint is_traced, uint64_t seed) noexcept:
    cdef const char *end = data + size
    cdef const char *line
    while is_traced:  # a line of ours is on top, which is another one each time
        line = <const char *>memchr(data, c"\n", end - data)
        if line == NULL:
            break
        data = line + 1
        is_traced = data < end and data[0] in (c" ", c"\t")
    size = end - data
    seed ^= <uint64_t>size
    if size <= 2 * PART:
        return mixed(data, size, seed)
    return mixed(end - PART, PART, mixed(data, PART, seed))


cdef uint64_t mixed(const char *data, Py_ssize_t size, uint64_t seed) noexcept:
    cdef uint64_t states[LANES]
    cdef uint64_t word[LANES]
    cdef const char *end = data + size
    cdef int lane
    for lane in range(LANES):
        states[lane] = seed + lane
    while end - data >= <Py_ssize_t>sizeof(word):
        memcpy(word, data, sizeof(word))
        for lane in range(LANES):
            states[lane] = mixed_in(states[lane], word[lane])
        data += sizeof(word)
    if data < end:
        for lane in range(LANES):
            word[lane] = 0
        memcpy(word, data, end - data)
        for lane in range(LANES):
            states[lane] = mixed_in(states[lane], word[lane])
    for lane in range(LANES):
        seed = mixed_in(seed, states[lane])
    return seed


cdef inline uint64_t mixed_in(uint64_t state, uint64_t word) noexcept:
    state = (state ^ word) * FACTOR
    return state ^ state >> 29
