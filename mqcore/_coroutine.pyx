"""Coroutine hooks, step by step.

What a coroutine returns means what a hook's return value means; what follows from it is for `_dispatch` to say.

A `Driver` does what asyncio's Task does: it sends and throws into the coroutine, waits for the futures that it yields, and
cancels. A Task would cost a new one for each call, a callback in a later turn that tells of its end, and on CPython 3.11 a turn
before it begins. Here its first step is made at once, its end is seen in the step that it ends with, and task and driver are
used again (`_task_pool`).
"""

import asyncio
import sys
from collections.abc import Coroutine
from inspect import isgenerator
from types import GetSetDescriptorType

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from ._asyncio cimport (
    attribute_is, enter_task, has_attributes, is_exactly, leave_task, set_by, set_flag, weakrefs_of)
from ._message cimport Message, report_raised
from .loop._call cimport ends_program, is_a, take_error, what_was_raised
from .loop._reactor cimport PyThread_get_thread_ident, Reactor
from .loop._seal cimport seal

from ._hook_task import new_task

cdef extern from *:
    """
    /* What a coroutine does next. RETURNED and WAITS: `*result` is what; RAISED: it is the exception, which is cleared. */
    static int mqcore_step(PyObject *coroutine, PyObject *error, PyObject **result)
    {
        static PyObject *throw_name;
        int progress;
        if (error == Py_None)
            progress = PyIter_Send(coroutine, Py_None, result);
        else {
            if (throw_name == NULL)
                throw_name = PyUnicode_InternFromString("throw");
            *result = throw_name == NULL ? NULL : PyObject_CallMethodOneArg(coroutine, throw_name, error);
            progress = *result == NULL ? PYGEN_ERROR : PYGEN_NEXT;
        }
        if (progress != PYGEN_ERROR)
            return progress;
        *result = mqcore_take_error();
        if (error != Py_None && PyObject_TypeCheck(*result, (PyTypeObject *)PyExc_StopIteration)) {
            PyObject *value = ((PyStopIterationObject *)*result)->value;
            value = Py_NewRef(value == NULL ? Py_None : value);
            Py_DECREF(*result);
            *result = value;
            return PYGEN_RETURN;
        }
        return PYGEN_ERROR;
    }
    """
    int step_of "mqcore_step"(PyObject *coroutine, PyObject *error, PyObject **result) noexcept

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_True
    PyObject *Py_False
    bint PyCoro_CheckExact(object)
    Py_ssize_t references "Py_REFCNT"(PyObject *) noexcept
    int PyContext_Enter(PyObject *) except -1
    int leave_context "PyContext_Exit"(PyObject *) noexcept
    object PyObject_CallNoArgs(PyObject *)
    object PyObject_Vectorcall(PyObject *, PyObject *const *, size_t, PyObject *names)
    PyObject *try_vectorcall "PyObject_Vectorcall"(PyObject *, PyObject *const *, size_t, PyObject *names) noexcept

cdef enum:
    FAILED = -2              # a step was not made, or ended by what is not the coroutine's


cdef object attribute_of(object type, str name):
    """How that attribute is found in an object, as asyncio's own code in C has it."""
    cdef object found = getattr(type, name, None)
    if not isinstance(found, GetSetDescriptorType):
        raise ImportError(f"asyncio.{type.__name__}.{name} is {found!r}: mqcore needs the asyncio that CPython has in C")
    return found


cdef object FUTURE = asyncio.Future
cdef object TASK = asyncio.Task
cdef object CANCELLED_ERROR = asyncio.CancelledError
cdef object CALLBACKS = attribute_of(FUTURE, "_callbacks")
cdef object BLOCKING = attribute_of(FUTURE, "_asyncio_future_blocking")
cdef object LOOP = attribute_of(FUTURE, "_loop")
cdef object STATE = attribute_of(FUTURE, "_state")
cdef object EXCEPTION = attribute_of(FUTURE, "_exception")
cdef object LOG_DESTROY_PENDING = attribute_of(TASK, "_log_destroy_pending")
cdef object ADD_DONE_CALLBACK = FUTURE.add_done_callback
cdef object RESULT = FUTURE.result
cdef object FINISHED = sys.intern("FINISHED")
cdef tuple CONTEXT_NAME = ("context",)

# Where asyncio has the task that runs: until 3.13 in a dict, by loop; then in the thread's state, which a function changes.
cdef object RUNNING_TASKS = (
    asyncio.tasks._current_tasks if sys.version_info < (3, 14) else asyncio.tasks._swap_current_task)
# Since 3.14 asyncio notes who waits for whom, for those who debug.
cdef object ADD_AWAITED_BY = getattr(asyncio.futures, "future_add_to_awaited_by", None)
cdef object DISCARD_AWAITED_BY = getattr(asyncio.futures, "future_discard_from_awaited_by", None)
cdef object get_loop = asyncio.futures._get_loop
cdef bint UNCANCEL_REVOKES = sys.version_info >= (3, 13)


cdef bint is_coroutine(object value) except -1:
    """Whether it has to be run in a task. Runs anybody's code, as `__class__` may be a property: what cannot tell is none."""
    if PyCoro_CheckExact(value):
        return True
    try:
        return isinstance(value, Coroutine)  # on CPython 3.11, asyncio takes generators for coroutines, too
    except Exception:
        return False


@cython.final
cdef class TaskLoop:
    pass


cdef TaskLoop new_task_loop(Reactor reactor):
    """The loop's thread."""
    cdef TaskLoop loop = TaskLoop.__new__(TaskLoop)
    loop.reactor = reactor
    loop.loop = reactor.loop
    loop.is_running = reactor.loop.is_running
    loop.call_soon = reactor.loop.call_soon
    loop.thread = PyThread_get_thread_ident()
    return loop


# ------------------------------------------------------------------------------------------------------------------ Steps

@cython.final
@cython.no_gc_clear  # what it needs is there as long as it is; of a cycle, the task loses it
cdef class Driver:

    def __call__(self, future=None, error=None):
        """The next step: the future that it waited for is done, or it did not wait for any. In a turn of the loop, which has
        entered its context."""
        if self.over:
            raise asyncio.InvalidStateError("the coroutine of this hook has ended")
        if self.loop.thread != PyThread_get_thread_ident():
            raise RuntimeError("the coroutine of this hook belongs to another thread")
        if future is not None:
            error = error_of(future)
        if self.running or self.over:
            raise RuntimeError(f"the coroutine of this hook, of {self.task!r}, cannot go on: it runs already, or has ended")
        take_step(self, error)

    def __repr__(self):
        return f"<coroutine hook {self.name}>"

    @property
    def __self__(self):
        """The task, as of asyncio's own callbacks."""
        return self.task

    def cancel(self, msg=None):
        """As Task.cancel."""
        if self.over:
            return False
        self.cancels += 1
        if self.waiter is not None and self.waiter.cancel(msg=msg):
            return True
        if not self.over:
            self.must_cancel = True
            before = self.cancel_message
            self.cancel_message = msg
            before = None  # what is dropped may call this
        return True

    def uncancel(self):
        """As Task.uncancel."""
        if self.cancels > 0:
            self.cancels -= 1
            if self.cancels == 0 and UNCANCEL_REVOKES:
                self.must_cancel = False
        return self.cancels


cdef Driver new_driver(TaskLoop loop):
    """With a task; without a coroutine, until one is given to it."""
    cdef Driver driver = Driver.__new__(Driver)
    driver.over = True
    driver.loop = loop
    driver.is_debugged = loop.loop.get_debug()
    driver.task = new_task(driver, loop.loop)
    driver.weakrefs = weakrefs_of(<PyObject *>driver.task)
    return driver


cdef int start(Driver driver, PyObject **result) noexcept:
    """The first step, if the loop runs; else that is for its first turn. WAITS: the coroutine waits, or is to begin: it is to
    be waited for. Else it is over, what it returned or raised is `result`, a new reference, and the driver is to be let go."""
    cdef int begun = (<int (*)(Driver) noexcept>begin)(driver)
    if begun > 0:
        return advance(driver, True, None, result)
    if begun == 0:
        return WAITS
    result[0] = give_up(driver.loop.reactor, driver.coroutine)
    return end(driver, RAISED, result)


cdef bint begin(Driver driver) except -1:
    """Whether the loop runs. If not, it is asked for a turn."""
    if PyObject_CallNoArgs(<PyObject *>driver.loop.is_running):
        return True
    call_soon(driver, None)
    return False


cdef void wait_for_end(Driver driver, object runner, Message message, coroutine_ended ended) noexcept:
    """Have `ended` called when the coroutine ends, in the step that it ends with."""
    set_flag(<PyObject *>LOG_DESTROY_PENDING, <PyObject *>driver.task, Py_True)
    driver.runner = runner
    driver.message = message
    driver.ended = ended


cdef void wait_no_longer(Driver driver) noexcept:
    """It has ended."""
    driver.ended = NULL
    set_flag(<PyObject *>LOG_DESTROY_PENDING, <PyObject *>driver.task, Py_False)


cdef int take_step(Driver driver, object error) except -1:
    """A step after the first."""
    cdef PyObject *result
    cdef int progress = advance(driver, False, error, &result)
    if progress == WAITS:
        return 0
    ending = <object>result if progress == RAISED and ends_program(<object>result) else None
    runner, message = driver.runner, driver.message
    driver.runner = driver.message = None
    driver.ended(runner, message, driver, progress, result)
    if ending is not None:
        raise ending
    return 0


cdef int advance(Driver driver, bint first, object error, PyObject **result) noexcept:
    """One step. The coroutine waits, or it is over and the result is a new reference."""
    cdef int progress
    driver.running = True  # until what it yielded has been looked at, which may call anybody
    if driver.must_cancel:
        progress = (<int (*)(Driver, bint, object, PyObject **) noexcept>send_cancellation)(driver, first, error, result)
    else:
        progress = (<int (*)(Driver, bint, object, PyObject **) noexcept>send)(driver, first, error, result)
    if progress == WAITS and (<int (*)(Driver, PyObject *) noexcept>wait_for)(driver, result[0]) < 0:
        progress = FAILED
    if progress == FAILED:
        result[0] = give_up(driver.loop.reactor, driver.coroutine)
        progress = RAISED
    driver.running = False
    return WAITS if progress == WAITS else end(driver, progress, result)


cdef int send_cancellation(Driver driver, bint first, object error, PyObject **result) except FAILED:
    """As `send`, with CancelledError in place of anything else."""
    cancellation = error if is_a(error, <PyObject *>CANCELLED_ERROR) else cancelled_error(driver)
    driver.must_cancel = False
    return send(driver, first, cancellation, result)


cdef int send(Driver driver, bint first, object error, PyObject **result) except FAILED:
    """What the coroutine does next, as the current task, and in its context."""
    cdef PyObject *before
    cdef int progress
    waiter, driver.waiter = driver.waiter, None
    if DISCARD_AWAITED_BY is not None and waiter is not None:
        DISCARD_AWAITED_BY(waiter, driver.task)
    if first:
        PyContext_Enter(<PyObject *>driver.variables)
    if enter_task(<PyObject *>RUNNING_TASKS, <PyObject *>driver.loop.loop, <PyObject *>driver.task, &before) == 0:
        progress = step_of(<PyObject *>driver.coroutine, <PyObject *>error, result)
        if leave_task(<PyObject *>RUNNING_TASKS, <PyObject *>driver.loop.loop, before) < 0:
            report_raised(driver.loop.reactor, "the end of a coroutine's step")
    else:
        result[0] = give_up(driver.loop.reactor, driver.coroutine)
        progress = RAISED
    if first and leave_context(<PyObject *>driver.variables) < 0:
        report_raised(driver.loop.reactor, "the end of a coroutine's first step")
    return progress


# ------------------------------------------------------------------------------------------------- What it waits for

cdef int wait_for(Driver driver, PyObject *stolen) except -1:
    """Of what the coroutine yielded."""
    cdef PyObject *arguments[3]
    yielded = <object>stolen
    Py_DECREF(yielded)
    if yielded is None:
        call_soon(driver, None)
        return 0
    if not is_plain(yielded):
        return wait_for_any(driver, yielded)
    if not (attribute_is(<PyObject *>LOOP, stolen, <PyObject *>driver.loop.loop)
            and attribute_is(<PyObject *>BLOCKING, stolen, Py_True)):
        return refuse(driver, yielded)
    set_by(<PyObject *>BLOCKING, stolen, Py_False)
    arguments[0] = stolen
    arguments[1] = <PyObject *>driver
    arguments[2] = <PyObject *>driver.variables
    PyObject_Vectorcall(<PyObject *>ADD_DONE_CALLBACK, arguments, 2, <PyObject *>CONTEXT_NAME)
    return waits(driver, yielded)


cdef int wait_for_any(Driver driver, object yielded) except -1:
    """What is none of asyncio's own futures, but may be like one."""
    cdef object blocking = getattr(yielded, "_asyncio_future_blocking", None)
    if blocking is None or get_loop(yielded) is not driver.loop.loop or not blocking or yielded is driver.task:
        return refuse(driver, yielded)
    yielded._asyncio_future_blocking = False
    yielded.add_done_callback(driver, context=driver.variables)
    return waits(driver, yielded)


cdef int waits(Driver driver, object future) except -1:
    driver.waiter = future  # there was none
    if ADD_AWAITED_BY is not None:
        ADD_AWAITED_BY(future, driver.task)
    if driver.must_cancel and future.cancel(msg=driver.cancel_message):
        driver.must_cancel = False
    return 0


cdef int refuse(Driver driver, object yielded) except -1:
    """The coroutine is told in the next turn what is wrong with what it yielded, in asyncio's words."""
    cdef object blocking = getattr(yielded, "_asyncio_future_blocking", None)
    if blocking is None and isgenerator(yielded):
        text = f"yield was used instead of yield from for generator in task {driver.task!r} with {yielded!r}"
    elif blocking is None:
        text = f"Task got bad yield: {yielded!r}"
    elif get_loop(yielded) is not driver.loop.loop:
        text = f"Task {driver.task!r} got Future {yielded!r} attached to a different loop"
    elif not blocking:
        text = f"yield was used instead of yield from in task {driver.task!r} with {yielded!r}"
    else:
        text = f"Task cannot await on itself: {driver.task!r}"
    call_soon(driver, RuntimeError(text))
    return 0


cdef int call_soon(Driver driver, object error) except -1:
    """Take the next step in the next turn: with an error, which is raised in the coroutine."""
    cdef PyObject *arguments[4]
    arguments[0] = <PyObject *>driver
    if error is None:
        arguments[1] = <PyObject *>driver.variables
        PyObject_Vectorcall(<PyObject *>driver.loop.call_soon, arguments, 1, <PyObject *>CONTEXT_NAME)
    else:
        arguments[1] = Py_None
        arguments[2] = <PyObject *>error
        arguments[3] = <PyObject *>driver.variables
        PyObject_Vectorcall(<PyObject *>driver.loop.call_soon, arguments, 3, <PyObject *>CONTEXT_NAME)
    return 0


cdef object error_of(object future):
    """What it raises in who waits for it; None: it has a result."""
    cdef PyObject *arguments[1]
    cdef PyObject *value
    if not is_plain(future):
        try:
            future.result()
        except BaseException as error:
            return error
        return None
    if (attribute_is(<PyObject *>STATE, <PyObject *>future, <PyObject *>FINISHED)
            and attribute_is(<PyObject *>EXCEPTION, <PyObject *>future, Py_None)):
        return None
    arguments[0] = <PyObject *>future
    value = try_vectorcall(<PyObject *>RESULT, arguments, 1, NULL)
    if value == NULL:
        return what_was_raised()
    Py_DECREF(<object>value)
    return None


cdef bint is_plain(object future) noexcept:
    """Whether it is one of asyncio's own, and not of a subclass."""
    return is_exactly(<PyObject *>future, <PyObject *>FUTURE) or is_exactly(<PyObject *>future, <PyObject *>TASK)


# -------------------------------------------------------------------------------------------------------------- The end

cdef PyObject *give_up(Reactor reactor, object coroutine) noexcept:
    """What was just raised was not in the coroutine: it is closed. The error, a new reference."""
    cdef PyObject *error = take_error()
    if (<int (*)(object) noexcept>close_coroutine)(coroutine) < 0:
        report_raised(reactor, "the coroutine of a hook, which could not go on and was closed")
    return error


cdef int close_coroutine(object coroutine) except -1:
    coroutine.close()
    return 0


cdef int end(Driver driver, int progress, PyObject **result) noexcept:
    """The coroutine is over. Who knows its task is told, and keeps it."""
    if progress == RETURNED and driver.must_cancel:
        value = <object>result[0]
        Py_DECREF(value)
        result[0] = (<PyObject *(*)(Driver) noexcept>new_cancelled_error)(driver)
        if result[0] == NULL:
            result[0] = take_error()
        progress = RAISED
    driver.must_cancel = False
    driver.over = True
    if not is_untouched(driver):
        if (<int (*)(Driver, int, object) noexcept>complete)(driver, progress, <object>result[0]) < 0:
            report_raised(driver.loop.reactor, "the end of a coroutine hook's task")
        retire(driver)
    return progress


cdef int complete(Driver driver, int progress, object value) except -1:
    """Make the task, which is a future, one that is done."""
    if progress == RETURNED:
        FUTURE.set_result(driver.task, value)
    elif is_a(value, <PyObject *>CANCELLED_ERROR):
        FUTURE.cancel(driver.task, msg=value.args[0] if value.args else None)
    else:
        FUTURE.set_exception(driver.task, value)
        driver.task._log_traceback = False  # who called the hook is told
    return 0


cdef object cancelled_error(Driver driver):
    """As Task makes it."""
    return CANCELLED_ERROR() if driver.cancel_message is None else CANCELLED_ERROR(driver.cancel_message)


cdef PyObject *new_cancelled_error(Driver driver) except NULL:
    error = cancelled_error(driver)
    Py_INCREF(error)
    return <PyObject *>error


# ------------------------------------------------------------------------------------------------------------- Its task

cdef bint is_untouched(Driver driver) noexcept:
    """Whether the driver alone has its task, and nobody has left anything there."""
    cdef PyObject *task = <PyObject *>driver.task
    return (references(task) == 1 and weakrefs_of(task) == driver.weakrefs and not has_attributes(task)
            and attribute_is(<PyObject *>CALLBACKS, task, Py_None))


cdef void retire(Driver driver) noexcept:
    """Its task may be somebody else's now; the two kept each other. It makes no step any more."""
    cdef PyObject *task = <PyObject *>driver.task  # dropped when the field is set
    Py_INCREF(<object>task)
    driver.loop = None  # which the pool keeps
    driver.task = None
    Py_DECREF(<object>task)


seal(TaskLoop)
seal(Driver)
