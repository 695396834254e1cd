# The tasks of coroutine hooks, which one hook after the other runs in.

from ._coroutine cimport Driver, TaskLoop
from ._message cimport CounterRow, Drops
from .loop._reactor cimport Reactor

cdef class TaskPool:
    """Those of one dispatcher."""
    cdef TaskLoop loop
    cdef Driver idle                # the first, in a list
    cdef Py_ssize_t idle_count
    cdef bint closed

cdef TaskPool new_pool(Reactor reactor)
cdef void close_pool(TaskPool pool) noexcept
cdef Driver take_driver(TaskPool pool, object coroutine, object variables, CounterRow row)
cdef void let_go(TaskPool pool, Driver driver, Drops *drops) noexcept
