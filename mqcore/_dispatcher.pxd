# One worker's engine, and its parts.

from libc.stdint cimport uint64_t

from ._changes cimport ActivePlugins
from ._dispatch cimport Runner
from ._holds cimport HoldTable
from ._message cimport StepCounts
from .loop._reactor cimport Reactor
from .loop._watchdog cimport LoopWatchdog

cdef enum Life:
    NEW = 0
    OPENING = 1                     # its plugins are being initialized
    OPEN = 2
    ENDED = 3

cdef class Dispatcher:
    cdef Reactor reactor
    cdef HoldTable holds
    cdef Runner runner
    cdef ActivePlugins active
    cdef int life                   # Life
    cdef bint ending_now            # close() is under way
    cdef object ending
    cdef LoopWatchdog watchdog      # None without one
    cdef uint64_t scan_began        # ns of uv_hrtime()
    cdef object __weakref__

    cpdef StepCounts counts(self)
    cdef int open(self, object order) except -1
    cdef int end(self) except -1
