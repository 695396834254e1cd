# The watchdog of one loop, as Python has it.

from ._lookout cimport Lookout
from ._reactor cimport Reactor
from ._state cimport Handle

cdef class Guard:
    """Has the thread that looks out for a loop that does not turn, and its figures."""
    cdef Lookout lookout
    cdef Reactor reactor
    cdef Handle *prepare
    cdef Handle *check
    cdef object teller              # its thread
    cdef object kept                # what the callers are parts of: they may be read as long as this is there

    cdef int start(self, object order) except -1
    cdef int open_handles(self) except -1
    cdef void end_thread(self) noexcept
    cdef void stop(self) noexcept

cdef Guard new_guard(Reactor reactor)
