# How a stream reads its source, and how whoever iterates it waits.

from cpython.object cimport PyObject

from ._flow cimport Flow
from ._hook cimport Hook

cdef enum Found:
    # What a flow has for whoever asks.
    ONE = 0                  # a message and its outcome
    NOTHING = 1              # the source gave one that is in flight now, or ended
    WAIT = 2                 # for an outcome, or for the source
    TURN = 3                 # the loop has to have one first
    OVER = 4                 # there is no more

cdef Flow flow_of(Hook hook, object messages, tuple args, object max_in_flight, bint ordered)
cdef int poll(Flow flow, PyObject **message, PyObject **outcome) noexcept
cdef object wait(Flow flow, bint turn)
cdef object end(Flow flow)
cdef int check_thread(Flow flow) except -1
