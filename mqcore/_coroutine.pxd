# Coroutine hooks, step by step.

from cpython.object cimport PyObject

from ._message cimport Message
from .loop._reactor cimport Reactor

cdef enum Progress:
    # How a step of a coroutine ended, with what CPython's PyIter_Send returns.
    RAISED = -1
    RETURNED = 0
    WAITS = 1

# The coroutine, which has waited, returned or raised: `result`, which is the function's. It is to let go of the driver.
ctypedef void (*coroutine_ended)(
    object runner, Message message, Driver driver, int progress, PyObject *result) noexcept

cdef class TaskLoop:
    """The loop of one dispatcher, as the steps of coroutines need it."""
    cdef Reactor reactor
    cdef object loop
    cdef object is_running          # methods of the loop
    cdef object call_soon
    cdef unsigned long thread

cdef class Driver:
    """Runs one coroutine, as asyncio's Task does, in the HookTask that it has; then another one."""
    cdef object task                # None when it has had its last
    cdef PyObject *weakrefs         # the only one to the task is asyncio's
    cdef bint is_debugged           # by asyncio
    cdef TaskLoop loop              # None when it has had its last task
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

cdef bint is_coroutine(object value) except -1
cdef PyObject *give_up(Reactor reactor, object coroutine) noexcept
cdef TaskLoop new_task_loop(Reactor reactor)
cdef Driver new_driver(TaskLoop loop)
cdef int start(Driver driver, PyObject **result) noexcept
cdef void wait_for_end(Driver driver, object runner, Message message, coroutine_ended ended) noexcept
cdef void wait_no_longer(Driver driver) noexcept
cdef bint is_untouched(Driver driver) noexcept
cdef void retire(Driver driver) noexcept
