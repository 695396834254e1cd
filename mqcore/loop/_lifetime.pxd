# What plugins start on the loop, timers and watchers, and what they end with.

from cpython.object cimport PyObject

from ._list cimport List
from ._reactor cimport Reactor, Runnable
from ._state cimport Caller, Watch
from ._wheel cimport Node

cdef class Lifetime:
    """What timers and watchers are started on, and end with."""
    cdef Reactor reactor
    cdef List running                   # its WatchHandles that are active; the loop owns them
    cdef Caller *caller                 # whose their callbacks are
    cdef bint over

    cdef int check_open(self, str what) except -1
    cdef int check_start(self, str what, object callback, Py_ssize_t count) except -1
    cdef Py_ssize_t arguments_of(self, const char *method, Py_ssize_t count) noexcept
    cdef void callback_raised(self, object error) noexcept
    cdef void detach(self) noexcept

cdef class WatchHandle(Runnable):
    """A timer or a watcher: something active on a lifetime."""
    cdef Lifetime lifetime
    cdef object callback
    cdef tuple args

    cdef int check_lifetime(self, str what) except -1
    cdef void begin_call(self) noexcept
    cdef void returned(self, PyObject *result) noexcept

cdef class Timer(WatchHandle):
    cdef Node node                      # in the loop's wheel as long as it runs

    cdef void start(self, double seconds) noexcept

cdef class Watcher(WatchHandle):
    cdef Watch watch                    # in the fd's poll as long as it is active
    cdef readonly int fd
    cdef readonly object error

    cdef void call(self, int events) noexcept

cdef object cannot_watch(int fd, int code)
