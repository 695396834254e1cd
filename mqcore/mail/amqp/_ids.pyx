"""The ids of the messages of a queue: BLAKE2b of its name, the message's own id, and, where mails are kept by their ids, the
body. And which messages are done with."""

from collections import OrderedDict
from hashlib import blake2b

cimport cython

cdef enum:
    ID_SIZE = 16                # octets
    REMEMBERED = 10_000         # messages that are done with


@cython.final
cdef class Ids:
    """What the ids of all messages of a queue begin with is worked out once. `of_bodies`: two messages that call themselves the
    same, and differ, have two ids. That costs more than all else that is done with a large message."""

    def __cinit__(self, str queue not None, *, bint of_bodies=True):
        self.of_bodies = of_bodies
        self.begun = blake2b(sized(queue.encode("utf-8", "surrogateescape")), digest_size=ID_SIZE)

    def id(self, str message_id not None, bytes body not None):
        """The same when the message comes again: 32 hex digits."""
        return self.make(message_id.encode("utf-8", "surrogateescape"), body)

    cdef str make(self, bytes message_id, bytes body):
        digest = self.begun.copy()
        digest.update(sized(message_id))
        if self.of_bodies:
            digest.update(body)
        return digest.hexdigest()


@cython.final
cdef class Done:
    """Messages that are done with, the last ones: of some the broker may never have heard that, and gives them again.

    `of_bodies`: their ids are. Else they are known by their bodies, too, which are kept, of `most` octets together: to compare
    the few that come again costs nothing where none does, and a hash of each would.
    """

    def __cinit__(self, Py_ssize_t most, *, bint of_bodies):
        self.bodies = OrderedDict()
        self.most = most
        self.of_bodies = of_bodies

    def __len__(self):
        return len(self.bodies)

    cpdef bint has(self, str id, bytes body) except -1:
        return id in self.bodies and (self.of_bodies or self.bodies[id] == body)

    cpdef int add(self, str id, bytes body) except -1:
        if id is None or body is None:
            raise TypeError("what is done with has an id and a body")
        if id in self.bodies:
            self.drop(self.bodies.pop(id))
        self.bodies[id] = None if self.of_bodies else body
        self.size += 0 if self.of_bodies else len(body)
        while len(self.bodies) > 1 and (self.size > self.most or len(self.bodies) > REMEMBERED):
            self.drop(self.bodies.popitem(last=False)[1])
        return 0

    cdef int drop(self, bytes body) except -1:
        self.size -= 0 if body is None else len(body)
        return 0


cdef bytes sized(bytes text):
    """So that no two pairs of texts are the same behind each other."""
    return len(text).to_bytes(4, "big") + text
