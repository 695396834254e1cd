# Streams: a source of messages, run through a hook, as an asynchronous iterator of outcomes.

from libc.stdint cimport uint8_t

from ._flow cimport Flow

cdef class Stream:
    cdef Flow flow
    cdef object __weakref__

cdef class Next:
    """What `__anext__` gives: ready at once where there is something to yield."""
    cdef Stream stream
    cdef object inner               # the coroutine that waits for something
    cdef uint8_t state              # Awaited
    cdef bint running
