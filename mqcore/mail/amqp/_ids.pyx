"""The ids of the messages of a queue: BLAKE2b of its name, the message's own id, and, where mails are kept by their ids, the
body. And which messages are done with."""

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

    Nor does it cost much to add one: ids and bodies lie in rings, and are indexed when it is asked for one.
    """

    def __cinit__(self, Py_ssize_t most, *, bint of_bodies):
        self.ids = [None] * REMEMBERED
        self.bodies = [None] * REMEMBERED
        self.places = {}
        self.most = most
        self.of_bodies = of_bodies

    def __len__(self):
        return self.next - self.first

    cpdef bint has(self, str id, bytes body) except -1:
        self.index()
        place = self.places.get(id)
        if place is None or <Py_ssize_t>place < self.first:
            return False
        return self.of_bodies or self.bodies[<Py_ssize_t>place % REMEMBERED] == body

    cpdef int add(self, str id, bytes body) except -1:
        cdef Py_ssize_t at = self.next % REMEMBERED
        if id is None or body is None:
            raise TypeError("what is done with has an id and a body")
        if self.next - self.first == REMEMBERED:
            self.drop()
        self.ids[at] = id
        if not self.of_bodies:
            self.bodies[at] = body
            self.size += len(body)
        self.next += 1
        while self.size > self.most and self.next - self.first > 1:
            self.drop()
        return 0

    cdef int drop(self) except -1:
        """The oldest."""
        cdef Py_ssize_t at = self.first % REMEMBERED
        cdef bytes body = self.bodies[at]
        self.size -= 0 if body is None else len(body)
        self.ids[at] = self.bodies[at] = None
        self.first += 1
        return 0

    cdef int index(self) except -1:
        """What was added since the last time. Of two with one id, the later counts."""
        cdef Py_ssize_t place
        for place in range(max(self.indexed, self.first), self.next):
            self.places[self.ids[place % REMEMBERED]] = place
        self.indexed = self.next
        if len(self.places) > 2 * REMEMBERED:  # most of them are dropped
            self.places = {id: place for id, place in self.places.items() if <Py_ssize_t>place >= self.first}
        return 0


cdef bytes sized(bytes text):
    """So that no two pairs of texts are the same behind each other."""
    return len(text).to_bytes(4, "big") + text
