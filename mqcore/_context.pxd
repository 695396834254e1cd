# The plugin's side: its handle on a worker, and the token of one hold.

from cpython.object cimport PyObject

from ._message cimport Holder, Message, Token

cdef class Context(Holder):
    cdef readonly dict data
    cdef readonly object log
    cdef bint forgiving         # on_error = "continue"
    cdef double hold_timeout    # s; 0: none
    cdef Py_ssize_t uses        # chains that name it
    cdef bint retired           # replaced: cleaned up once no chain names it
    cdef void *handle           # native plugins: the MQ_Context that stands for it

    cdef object failure(self, object error, str hook)

cdef class Hold(Token):
    cdef Context context
    cdef PyObject *hook         # its name, kept for ever

    cdef int give(self, int verdict, object error) except -1
    cdef int refuse(self, str what) except -1

cdef Context new_context(object owner, object plugin, double hold_timeout)
