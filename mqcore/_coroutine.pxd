# Coroutine hooks: the tasks that they run in.

from cpython.object cimport PyObject

from ._message cimport CounterRow, Drops, Message
from .loop._reactor cimport Reactor

cdef enum Progress:
    # How a step of a coroutine ended, with what CPython's PyIter_Send returns.
    RAISED = -1
    RETURNED = 0
    WAITS = 1

# The coroutine, which has waited, returned or raised: `result`, which is the function's.
ctypedef void (*coroutine_ended)(
    object runner, Message message, Driver driver, int progress, PyObject *result) noexcept

cdef class HookTasks

cdef class Driver:
    """Runs one coroutine, as asyncio's Task does, in the HookTask that it has; then another one."""
    cdef object task                # None when it has had its last
    cdef PyObject *weakrefs         # the only one to the task is asyncio's
    cdef bint is_debugged           # by asyncio
    cdef HookTasks tasks            # None while it is idle
    cdef Driver next_idle
    cdef public str name            # of the task; None: not as it was set here
    cdef readonly object coroutine
    cdef readonly object variables  # the context that it runs in
    cdef readonly object waiter     # the future that it waits for
    cdef readonly Py_ssize_t cancels
    cdef readonly bint must_cancel  # CancelledError is to be raised in it
    cdef object cancel_message
    cdef readonly bint over         # also while it is idle
    cdef bint running
    cdef object runner              # whom to tell when it has ended
    cdef Message message
    cdef coroutine_ended ended

cdef class HookTasks:
    """Those of one dispatcher, and where they run."""
    cdef Reactor reactor
    cdef object loop
    cdef object is_running          # methods of the loop
    cdef object call_soon
    cdef unsigned long thread
    cdef dict names                 # of tasks, by CounterRow
    cdef Driver idle                # the first, in a list
    cdef Py_ssize_t idle_count
    cdef bint closed

cdef bint is_coroutine(object value) except -1
cdef HookTasks new_tasks(Reactor reactor)
cdef void close_tasks(HookTasks tasks) noexcept
cdef Driver take_driver(HookTasks tasks, object coroutine, object variables, CounterRow row)
cdef int start(Driver driver, PyObject **result) noexcept
cdef void wait_for_end(Driver driver, object runner, Message message, coroutine_ended ended) noexcept
cdef void let_go(Driver driver, Drops *drops) noexcept
