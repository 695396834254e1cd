"""The ids of the messages of a queue: BLAKE2b of its name, the message's own id, and the body."""

from hashlib import blake2b

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef enum:
    ID_SIZE = 16                # octets


@cython.final
cdef class Ids:
    """What the ids of all messages of a queue begin with is worked out once."""

    def __cinit__(self, str queue not None):
        self.begun = blake2b(sized(queue.encode("utf-8", "surrogateescape")), digest_size=ID_SIZE)

    def id(self, str message_id not None, bytes body not None):
        """The same when the message comes again: 32 hex digits."""
        cdef uint64_t key[2]
        return self.make(message_id.encode("utf-8", "surrogateescape"), body, key)

    cdef str make(self, bytes message_id, bytes body, uint64_t *key):
        """Likewise. `key`: the same as two numbers."""
        digest = self.begun.copy()
        digest.update(sized(message_id))
        digest.update(body)
        cdef bytes made = digest.digest()
        memcpy(key, PyBytes_AS_STRING(made), ID_SIZE)
        return made.hex()


cdef bytes sized(bytes text):
    """So that no two pairs of texts are the same behind each other."""
    return len(text).to_bytes(4, "big") + text
