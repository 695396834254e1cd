# What a stream has in flight.

from cpython.object cimport PyObject

from ._hook cimport Hook
from ._message cimport Message
from .loop._list cimport Link, List
from .loop._reactor cimport Portion, Task

cdef class Place:
    """A message's place in a stream, and the `done` of its step."""
    cdef Flow flow                  # as long as the step goes on; then None
    cdef Link link                  # in a list of the flow, which owns the place once the step has ended
    cdef PyObject *running          # borrowed: the message, while `begin` is called
    cdef object referent            # a weak reference to it, afterwards
    cdef Message message            # once the step has ended, with its outcome
    cdef object outcome
    cdef bint waiting               # for the end of the step

cdef class Flow(Task):
    """What a stream has in flight."""
    cdef Hook hook
    cdef tuple args
    cdef object source              # an iterator; None once it has ended
    cdef bint asynchronous          # the source is: a task of its own reads it
    cdef bint ordered
    cdef bint reading               # the source, which is not asynchronous, is just being asked
    cdef bint closed                # nothing is yielded any more
    cdef bint reader_cancelled      # who reads was told to end
    cdef bint left                  # nobody has the stream any more: closed in a tick
    cdef Py_ssize_t most
    cdef Py_ssize_t in_flight       # messages that were read and not yielded yet
    cdef List flight                # places whose step goes on; with `ordered` all, in the order of reading
    cdef List ended                 # owned places whose step has ended; with `ordered` none
    cdef Place spare                # for the next message
    cdef Portion portion            # until the loop has its next turn
    cdef Portion reading_portion    # the same for the task that reads
    cdef PyObject *pending          # borrowed: the Next that is awaited
    cdef object waiter              # a future: there is something to yield
    cdef object room                # a future: there is room for more
    cdef object reader              # the task that reads
    cdef object error               # the source's: raised when nothing is in flight any more
    cdef object close_error         # raised while the source was closed

    cdef PyObject *run(self, object candidate) except? NULL
    cdef void keep(self, Message message, object outcome, bint first_of_all) noexcept
    cdef PyObject *first_ended(self) noexcept
    cdef void take_out(self, Place place, PyObject **message, PyObject **outcome) noexcept
    cdef void remove(self, Place place) noexcept
    cdef void wake(self) noexcept
    cdef void make_room(self) noexcept
    cdef void source_failed(self, object error) noexcept
    cdef bint cancel_some(self) noexcept
    cdef void leave(self) noexcept

cdef Flow new_flow(Hook hook, tuple args, Py_ssize_t most, bint ordered)
cdef void close(Flow flow) noexcept
cdef int cancel_reader(Flow flow) except -1
cdef int close_source(object source) except -1
