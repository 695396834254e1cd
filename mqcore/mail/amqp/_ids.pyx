"""The ids of the messages of a queue: BLAKE2b of its name, the message's own id, and BLAKE2bp of the body."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "blake2.h" nogil:
    enum:
        BLAKE2_MOST

    blake2_stripes *blake2_choose() noexcept
    void blake2_begin(blake2_state *state, size_t size) noexcept
    void blake2_update(blake2_state *state, const uint8_t *data, size_t size) noexcept
    void blake2_end(blake2_state *state, uint8_t *digest, size_t size) noexcept
    void blake2bp(blake2_stripes *compress, const uint8_t *data, size_t size, uint8_t *digest) noexcept

cdef enum:
    ID_SIZE = 16                # octets


@cython.final
cdef class Ids:
    """What the ids of all messages of a queue begin with is worked out once."""

    def __cinit__(self, str queue not None):
        cdef bytes name = queue.encode("utf-8", "surrogateescape")
        self.compress = blake2_choose()
        blake2_begin(&self.begun, ID_SIZE)
        put_sized(&self.begun, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    def id(self, str message_id not None, bytes body not None):
        """The same when the message comes again: 32 hex digits."""
        cdef uint64_t key[2]
        cdef bytes encoded = message_id.encode("utf-8", "surrogateescape")
        return self.make(PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded), body, key)

    cdef str make(self, const char *message_id, Py_ssize_t size, bytes body, uint64_t *key):
        """Likewise. `key`: the same as two numbers."""
        cdef blake2_state state = self.begun
        cdef uint8_t of_body[BLAKE2_MOST]
        cdef uint8_t digest[ID_SIZE]
        put_sized(&state, message_id, size)
        blake2bp(self.compress, <const uint8_t *>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), of_body)
        blake2_update(&state, of_body, BLAKE2_MOST)
        blake2_end(&state, digest, ID_SIZE)
        memcpy(key, digest, ID_SIZE)
        return digest[:ID_SIZE].hex()


cdef int put_sized(blake2_state *state, const char *text, Py_ssize_t size) noexcept:
    """So that no two pairs of texts are the same behind each other."""
    cdef uint8_t head[4]
    cdef int place
    for place in range(4):
        head[place] = <uint8_t>(size >> 8 * (3 - place))
    blake2_update(state, head, 4)
    blake2_update(state, <const uint8_t *>text, size)
    return 0
