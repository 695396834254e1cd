"""Coroutine hooks: the tasks that they run in, step by step.

What a coroutine returns means what a hook's return value means; what follows from it is for `_dispatch` to say.

A `Driver` does what asyncio's Task does: it sends and throws into the coroutine, waits for the futures that it yields, and
cancels. A Task would cost a new one for each call, a callback in a later turn that tells of its end, and on CPython 3.11 a turn
before it begins. Here its first step is made at once, its end is seen in the step that it ends with, and task and driver are
used again, if nobody else has, knows or has changed the task: a hook that never waits costs little more than its coroutine.
"""

import asyncio
import sys
from collections.abc import Coroutine
from inspect import isgenerator

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from ._message cimport CounterRow, Drops, Message, drop_later, flush, no_drops, report_raised
from .loop._call cimport ends_program, is_a, take_error, what_was_raised
from .loop._reactor cimport PyThread_get_thread_ident, Reactor
from .loop._seal cimport seal

from ._hook_task import BEGINS_ANEW, new_task
from .errors import MqError

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

    /* What an attribute of asyncio's C types is, past the search for it. */
    static inline PyObject *mqcore_attribute(PyObject *descriptor, PyObject *object)
    {
        return Py_TYPE(descriptor)->tp_descr_get(descriptor, object, (PyObject *)Py_TYPE(object));
    }

    static inline int mqcore_set_attribute(PyObject *descriptor, PyObject *object, PyObject *value)
    {
        return Py_TYPE(descriptor)->tp_descr_set(descriptor, object, value);
    }

    #define mqcore_is_exactly(object, type) Py_IS_TYPE(object, (PyTypeObject *)(type))

    static inline PyObject *mqcore_weakrefs(PyObject *object)
    {
        return *(PyObject **)PyObject_GET_WEAKREFS_LISTPTR(object);
    }

    static inline int mqcore_has_attributes(PyObject *object)
    {
        PyObject **attributes = _PyObject_GetDictPtr(object);
        /* Since CPython 3.15, to ask makes a dict where there is none. */
        return attributes != NULL && *attributes != NULL && PyDict_GET_SIZE(*attributes) != 0;
    }
    """
    int step_of "mqcore_step"(PyObject *coroutine, PyObject *error, PyObject **result) noexcept
    object get_by "mqcore_attribute"(object descriptor, object)
    PyObject *try_get_by "mqcore_attribute"(PyObject *descriptor, PyObject *) noexcept
    int set_by "mqcore_set_attribute"(object descriptor, object, object value) except -1
    int set_flag "mqcore_set_attribute"(object descriptor, object, object value) noexcept  # a bool
    bint is_exactly "mqcore_is_exactly"(PyObject *, PyObject *type) noexcept
    PyObject *weakrefs_of "mqcore_weakrefs"(PyObject *) noexcept
    bint has_attributes "mqcore_has_attributes"(PyObject *) noexcept

cdef extern from "Python.h":
    PyObject *Py_None
    bint PyCoro_CheckExact(object)
    Py_ssize_t references "Py_REFCNT"(PyObject *) noexcept
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1
    object PyObject_CallNoArgs(object)
    object PyObject_Vectorcall(object, PyObject *const *, size_t, PyObject *names)
    PyObject *try_vectorcall "PyObject_Vectorcall"(PyObject *, PyObject *const *, size_t, PyObject *names) noexcept
    PyObject *PyDict_GetItemWithError(object, object) except? NULL
    int PyDict_SetItem(object, object, object) except -1
    int PyDict_DelItem(object, object) except -1

cdef enum:
    FAILED = -2              # a step was not made, or ended by what is not the coroutine's
    MOST_IDLE = 10_000       # tasks of a dispatcher; each, with its driver, has about 450 bytes

cdef object FUTURE = asyncio.Future
cdef object TASK = asyncio.Task
cdef object CANCELLED_ERROR = asyncio.CancelledError
cdef object CALLBACKS = FUTURE._callbacks
cdef object BLOCKING = FUTURE._asyncio_future_blocking
cdef object LOOP = FUTURE._loop
cdef object ADD_DONE_CALLBACK = FUTURE.add_done_callback
cdef object RESULT = FUTURE.result
cdef object LOG_DESTROY_PENDING = TASK._log_destroy_pending
cdef tuple CONTEXT_NAME = ("context",)

# Where asyncio has the task that runs: until 3.13 in a dict, by loop; then in the thread's state.
cdef bint TASKS_IN_DICT = sys.version_info < (3, 14)
cdef object CURRENT_TASKS = asyncio.tasks._current_tasks if TASKS_IN_DICT else None
cdef object SWAP_CURRENT_TASK = None if TASKS_IN_DICT else asyncio.tasks._swap_current_task
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


# ------------------------------------------------------------------------------------------------------------------ Tasks

@cython.final
cdef class HookTasks:
    pass


cdef HookTasks new_tasks(Reactor reactor):
    """The loop's thread."""
    if reactor.library.owner != "uvloop":
        raise MqError("the hook returned a coroutine, which needs a uvloop loop")
    cdef HookTasks tasks = HookTasks.__new__(HookTasks)
    tasks.reactor = reactor
    tasks.loop = reactor.loop
    tasks.is_running = reactor.loop.is_running
    tasks.call_soon = reactor.loop.call_soon
    tasks.thread = PyThread_get_thread_ident()
    tasks.names = {}
    return tasks


cdef void close_tasks(HookTasks tasks) noexcept:
    """Those that run go on."""
    cdef Driver driver
    tasks.closed = True
    while tasks.idle is not None:
        driver = tasks.idle
        drop_first(tasks)
        retire(driver)


cdef Driver take_driver(HookTasks tasks, object coroutine, object variables, CounterRow row):
    """A driver, which is to start the coroutine. `variables`: the context that is its own."""
    cdef Driver driver
    name = tasks.names.get(row)
    if name is None:
        tasks.names[row] = name = f"{row.plugin}:{row.hook}"
    while tasks.idle is not None:
        driver = tasks.idle
        drop_first(tasks)
        if has_it_alone(driver):
            break
        retire(driver)
    else:
        driver = Driver.__new__(Driver)
        driver.over = True
        driver.is_debugged = tasks.loop.get_debug()
        driver.task = new_task(driver, tasks.loop)
        driver.weakrefs = weakrefs_of(<PyObject *>driver.task)
    if driver.is_debugged and BEGINS_ANEW:
        FUTURE.__init__(driver.task, loop=tasks.loop)  # where asyncio debugs, it notes who called the hook
    if driver.name is not name:
        TASK.set_name(driver.task, name)
        driver.name = name
    driver.tasks = tasks
    driver.coroutine = coroutine
    driver.variables = variables
    driver.over = False
    return driver


cdef void drop_first(HookTasks tasks) noexcept:
    """Of those that are idle. The caller has it."""
    cdef Driver driver = tasks.idle
    tasks.idle = driver.next_idle
    driver.next_idle = None
    tasks.idle_count -= 1


cdef bint has_it_alone(Driver driver) noexcept:
    """An idle one: nobody has kept it, as a callback, or its task. The caller has one reference, the task has the other."""
    return references(<PyObject *>driver) == 2 and is_untouched(driver)


cdef bint is_untouched(Driver driver) noexcept:
    """Whether the driver alone has its task, and nobody has left anything there."""
    cdef PyObject *task = <PyObject *>driver.task
    cdef PyObject *callbacks
    if references(task) != 1 or weakrefs_of(task) != driver.weakrefs or has_attributes(task):
        return False
    callbacks = try_get_by(<PyObject *>CALLBACKS, task)  # None where there are none
    if callbacks == NULL:
        Py_DECREF(<object>take_error())
        return False
    Py_DECREF(<object>callbacks)
    return callbacks == Py_None


cdef void retire(Driver driver) noexcept:
    """Its task may be somebody else's now; the two kept each other."""
    cdef PyObject *task = <PyObject *>driver.task  # dropped when the field is set
    Py_INCREF(<object>task)
    driver.task = None
    Py_DECREF(<object>task)


cdef void let_go(Driver driver, Drops *drops) noexcept:
    """The coroutine is over, and what it came to is taken: to the idle ones, unless somebody knows its task. What is to be
    dropped is put into `drops`."""
    cdef HookTasks tasks = driver.tasks
    driver.tasks = None
    drop_later(drops, driver)
    if driver.task is None:
        return  # somebody has the task, and may ask what it was of
    drop_later(drops, driver.coroutine)
    driver.coroutine = None
    drop_later(drops, driver.variables)
    driver.variables = None
    if driver.ended != NULL:
        driver.ended = NULL
        set_flag(LOG_DESTROY_PENDING, driver.task, False)
    if tasks.closed or tasks.idle_count >= MOST_IDLE:
        drop_later(drops, driver.task)
        driver.task = None
        return
    driver.cancels = 0
    if driver.cancel_message is not None:
        drop_later(drops, driver.cancel_message)
        driver.cancel_message = None
    driver.next_idle = tasks.idle
    tasks.idle = driver
    tasks.idle_count += 1


# ------------------------------------------------------------------------------------------------------------------ Steps

@cython.final
@cython.no_gc_clear  # what it needs is there as long as it is; of a cycle, the task loses it
cdef class Driver:

    def __call__(self, future=None, error=None):
        """The next step: the future that it waited for is done, or it did not wait for any. In a turn of the loop, which has
        entered its context."""
        if self.tasks is None or self.over:
            raise asyncio.InvalidStateError("the coroutine of this hook has ended")
        if self.tasks.thread != PyThread_get_thread_ident():
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


cdef int start(Driver driver, PyObject **result) noexcept:
    """The first step, if the loop runs; else that is for its first turn. WAITS: the coroutine waits, or is to begin. Else it is
    over, what it returned or raised is `result`, a new reference, and the driver is to be let go."""
    cdef int begun = (<int (*)(Driver) noexcept>begin)(driver)
    if begun > 0:
        return advance(driver, True, None, result)
    if begun == 0:
        return WAITS
    result[0] = give_up(driver)
    return end(driver, RAISED, result)


cdef bint begin(Driver driver) except -1:
    """Whether the loop runs. If not, it is asked for a turn."""
    if PyObject_CallNoArgs(driver.tasks.is_running):
        return True
    call_soon(driver, None)
    return False


cdef void wait_for_end(Driver driver, object runner, Message message, coroutine_ended ended) noexcept:
    """Have `ended` called when the coroutine ends, in the step that it ends with."""
    set_flag(LOG_DESTROY_PENDING, driver.task, True)
    driver.runner = runner
    driver.message = message
    driver.ended = ended


cdef int take_step(Driver driver, object error) except -1:
    """A step after the first."""
    cdef PyObject *result
    cdef Drops drops
    cdef int progress = advance(driver, False, error, &result)
    if progress == WAITS:
        return 0
    value = <object>result
    runner, message, reactor = driver.runner, driver.message, driver.tasks.reactor
    driver.runner = driver.message = None
    if message is None:  # nobody is left to be told
        Py_DECREF(value)
    else:
        driver.ended(runner, message, driver, progress, result)
    no_drops(&drops)
    let_go(driver, &drops)
    flush(&drops, reactor)
    if progress == RAISED and ends_program(value):
        raise value
    return 0


cdef int advance(Driver driver, bint first, object error, PyObject **result) noexcept:
    """One step. The coroutine waits, or it is over and the result is a new reference."""
    cdef int progress
    driver.running = True  # until what it yielded has been looked at, which may call anybody
    progress = (<int (*)(Driver, bint, object, PyObject **) noexcept>send)(driver, first, error, result)
    if progress == WAITS and (<int (*)(Driver, PyObject *) noexcept>wait_for)(driver, result[0]) < 0:
        progress = FAILED
    if progress == FAILED:
        result[0] = give_up(driver)
        progress = RAISED
    driver.running = False
    return WAITS if progress == WAITS else end(driver, progress, result)


cdef int send(Driver driver, bint first, object error, PyObject **result) except FAILED:
    """What the coroutine does next, as the current task, and in its context."""
    cdef PyObject *before = NULL
    cdef int progress
    if driver.must_cancel:
        if not is_a(error, <PyObject *>CANCELLED_ERROR):
            error = cancelled_error(driver)
        driver.must_cancel = False
    waiter, driver.waiter = driver.waiter, None
    if waiter is not None and DISCARD_AWAITED_BY is not None:
        DISCARD_AWAITED_BY(waiter, driver.task)
    if first:
        PyContext_Enter(driver.variables)
    if (<int (*)(Driver, PyObject **) noexcept>enter_task)(driver, &before) == 0:
        progress = step_of(<PyObject *>driver.coroutine, <PyObject *>error, result)
        if (<int (*)(Driver, PyObject *) noexcept>leave_task)(driver, before) < 0:
            report_raised(driver.tasks.reactor, "the end of a coroutine's step")
    else:
        result[0] = give_up(driver)
        progress = RAISED
    if first and (<int (*)(object) noexcept>PyContext_Exit)(driver.variables) < 0:
        report_raised(driver.tasks.reactor, "the end of a coroutine's first step")
    return progress


cdef int enter_task(Driver driver, PyObject **before) except -1:
    """Make it the current task of the loop. `before`: a new reference to that of before; NULL or None: there was none."""
    cdef PyObject *arguments[2]
    if TASKS_IN_DICT:
        before[0] = PyDict_GetItemWithError(CURRENT_TASKS, driver.tasks.loop)
        if before[0] != NULL:
            Py_INCREF(<object>before[0])
        try:
            PyDict_SetItem(CURRENT_TASKS, driver.tasks.loop, driver.task)
        except BaseException:
            if before[0] != NULL:
                Py_DECREF(<object>before[0])
            raise
    else:
        arguments[0] = <PyObject *>driver.tasks.loop
        arguments[1] = <PyObject *>driver.task
        current = PyObject_Vectorcall(SWAP_CURRENT_TASK, arguments, 2, NULL)
        Py_INCREF(current)
        before[0] = <PyObject *>current
    return 0


cdef int leave_task(Driver driver, PyObject *before) except -1:
    """Steals the reference."""
    cdef PyObject *arguments[2]
    if before == NULL:
        PyDict_DelItem(CURRENT_TASKS, driver.tasks.loop)
        return 0
    task = <object>before
    Py_DECREF(task)
    if TASKS_IN_DICT:
        PyDict_SetItem(CURRENT_TASKS, driver.tasks.loop, task)
    else:
        arguments[0] = <PyObject *>driver.tasks.loop
        arguments[1] = before
        PyObject_Vectorcall(SWAP_CURRENT_TASK, arguments, 2, NULL)
    return 0


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
    if get_by(LOOP, yielded) is not driver.tasks.loop or get_by(BLOCKING, yielded) is not True:
        return refuse(driver, yielded)
    set_by(BLOCKING, yielded, False)
    arguments[0] = stolen
    arguments[1] = <PyObject *>driver
    arguments[2] = <PyObject *>driver.variables
    PyObject_Vectorcall(ADD_DONE_CALLBACK, arguments, 2, <PyObject *>CONTEXT_NAME)
    return waits(driver, yielded)


cdef int wait_for_any(Driver driver, object yielded) except -1:
    """What is none of asyncio's own futures, but may be like one."""
    cdef object blocking = getattr(yielded, "_asyncio_future_blocking", None)
    if blocking is None or get_loop(yielded) is not driver.tasks.loop or not blocking or yielded is driver.task:
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
    elif get_loop(yielded) is not driver.tasks.loop:
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
        PyObject_Vectorcall(driver.tasks.call_soon, arguments, 1, <PyObject *>CONTEXT_NAME)
    else:
        arguments[1] = Py_None
        arguments[2] = <PyObject *>error
        arguments[3] = <PyObject *>driver.variables
        PyObject_Vectorcall(driver.tasks.call_soon, arguments, 3, <PyObject *>CONTEXT_NAME)
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

cdef PyObject *give_up(Driver driver) noexcept:
    """What was just raised was not in the coroutine: it is closed. The error, a new reference."""
    cdef PyObject *error = take_error()
    if (<int (*)(object) noexcept>close_coroutine)(driver.coroutine) < 0:
        report_raised(driver.tasks.reactor, "the coroutine of a hook, which could not go on and was closed")
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
            report_raised(driver.tasks.reactor, "the end of a coroutine hook's task")
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


seal(HookTasks)
seal(Driver)
