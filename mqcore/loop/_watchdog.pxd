# The watchdog of one loop, as Python has it.

from ._reactor cimport Reactor
from ._state cimport Caller, Handle
from ._watchdog_thread cimport WatchdogState

cdef class LoopWatchdog:
    """Has the watchdog's threads, and its figures."""
    cdef WatchdogState state
    cdef Caller reload              # whose the loop is while plugins are loaded anew
    cdef Reactor reactor
    cdef Handle *prepare
    cdef Handle *check
    cdef object reporter            # the Python thread
    cdef object kept                # what the callers are parts of: they may be read as long as this is there

    cdef int start(self, object order) except -1
    cdef int open_handles(self) except -1
    cdef void stop_threads(self) noexcept
    cdef void stop(self) noexcept
    cdef object run_reload(self, object function)
    cdef void report_as(self, bint as_json, bint warnings) noexcept

cdef LoopWatchdog new_watchdog(Reactor reactor)
