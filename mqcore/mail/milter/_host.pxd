# What the connections of one server share.

from ..._dispatcher cimport Dispatcher
from ..._hook cimport Hook
from .._gateway cimport Gateway
from .._names cimport Names

cdef class MilterHost:
    cdef object loop
    cdef Gateway gateway
    cdef Dispatcher dispatcher
    cdef Hook connect
    cdef Hook secure
    cdef Hook mailfrom
    cdef Hook rcptto
    cdef Hook data
    cdef Hook close
    cdef Names names
    cdef Py_ssize_t max_message
    cdef public Py_ssize_t most     # connections that may be there
    cdef object plugins
    cdef object known               # the snapshot of the plugins that `wanted` is for
    cdef object wanted
    cdef readonly dict sessions     # the keys are those that are there
    cdef readonly unsigned long long entered
    cdef readonly bint is_stopping
    cdef object changed

    cdef object find_wanted(self)
    cdef int enter(self, session) except -1
    cdef int leave(self, session) except -1
