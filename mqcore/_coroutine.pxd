# Coroutine hooks: the task that one runs in, and its end.

from ._message cimport Message

ctypedef void (*task_ended)(object runner, Message message, object task) noexcept

cdef class TaskEnd:
    """Called when the task of a coroutine hook has ended."""
    cdef object runner
    cdef Message message
    cdef task_ended ended

cdef bint is_coroutine(object value) except -1
cdef object start_task(object coroutine, object loop, str name, object variables)
cdef int watch_task(object task, object variables, object runner, Message message, task_ended ended) except -1
