# What plugins start on the loop, timers and watchers, and what they end with.

from cpython.object cimport PyObject

from ._reactor cimport Due, Loop, Watch
from ._wheel cimport Node

cdef class Scope(Due):
    """What timers and watchers are started on, and end with."""
    cdef Loop owner
    cdef Started first                  # of those that are active; each keeps itself alive
    cdef bint over

    cdef int check_open(self, str what) except -1
    cdef int check_start(self, str what, object callback) except -1
    cdef void callback_raised(self, object error) noexcept
    cdef void end(self) noexcept
    cdef void stop_all(self) noexcept

cdef class Started(Due):
    """A timer or a watcher: something active on a scope."""
    cdef Scope scope
    cdef Started previous
    cdef Started following
    cdef object callback
    cdef tuple args

    cdef void join(self) noexcept
    cdef void leave(self) noexcept
    cdef bint halt(self) noexcept
    cdef void returned(self, PyObject *result) noexcept

cdef class Timer(Started):
    cdef Node node                      # in the loop's wheel as long as it runs

    cdef void start(self, double seconds) noexcept

cdef class Watcher(Started):
    cdef Watch watch                    # in the fd's poll as long as it is active
    cdef readonly int fd
    cdef readonly object error

    cdef void call(self, int events) noexcept

cdef void set_making(bint now) noexcept
cdef int check_making(object made) except -1
cdef object cannot_watch(int fd, int code)
