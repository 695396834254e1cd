# What a host uses: hooks, to run messages through, and the dispatcher.

from ._chain cimport Route
from ._message cimport Message
from ._step cimport Steps

cdef class Hook(Route):
    cdef readonly object spec
    cdef readonly Dispatcher dispatcher
    cdef Py_ssize_t extra           # how many arguments it has after context and message

    cdef int check_call(self, tuple args, object done) except -1
    cpdef object run_one(self, Message message, tuple args, object done)

cdef class Dispatcher(Steps):
    cdef readonly object plugins
    cdef dict hooks                 # name -> Hook
    cdef dict contexts              # Plugin -> Context, in order
    cdef list retired               # contexts of plugins that were replaced
    cdef double hold_timeout        # s
    cdef object ending
    cdef bint preparing             # contexts are being made for a change

    cdef void sweep(self) noexcept
