# The Received line of a mail that comes in.

from ...smtp._protocol cimport ServerProtocol

cdef class Tracer:
    cdef bytes by
    cdef readonly str id
    cdef double second              # that `end` is for
    cdef bytes end
    cdef int last_kind             # how a line began last, and what that depends on
    cdef str last_peer
    cdef str last_helo
    cdef bytes last

    cdef bytes begin(self, ServerProtocol protocol, str peer)
    cdef bytes line(self, bytes begin, str id, str recipient, double now)

cdef int kind_of(ServerProtocol protocol) noexcept
