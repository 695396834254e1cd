# What a host runs messages through.

from ._chain cimport Chain, Route
from ._dispatch cimport Runner
from ._message cimport Message

cdef extern from "Python.h":
    object copy_context "PyContext_CopyCurrent"()

cdef class Hook(Route):
    cdef readonly object spec
    cdef readonly object dispatcher
    cdef Runner runner
    cdef Py_ssize_t extra           # how many arguments it has after context and message

    cdef int check_awaitable(self) except -1
    cdef int check_call(self, tuple args, object done) except -1
    cdef int check_run(self, Message message, tuple args, object done) except -1
    cpdef object run_one(self, Message message, tuple args, object done)

cdef inline object variables_for(Chain chain):
    """The context variables of now, where coroutine hooks may need them."""
    return copy_context() if chain is not None and chain.coroutines else None

cdef Hook new_hook(Runner runner, object dispatcher, str name, object spec)
cdef str in_step(Message message)
