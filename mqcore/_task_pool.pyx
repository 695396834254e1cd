"""The tasks of coroutine hooks, each with the `Driver` that does its work.

A task, with its driver, is used again, if nobody else has, knows or has changed it when its coroutine is over: a hook that
never waits costs little more than its coroutine.
"""

import asyncio

cimport cython
from cpython.object cimport PyObject

from ._coroutine cimport Driver, is_untouched, new_driver, new_task_loop, retire, wait_no_longer
from ._message cimport CounterRow, Drops, drop_later
from .loop._reactor cimport Reactor
from .loop._seal cimport seal

from ._hook_task import BEGINS_ANEW
from .errors import MqError

cdef extern from "Python.h":
    Py_ssize_t references "Py_REFCNT"(PyObject *) noexcept

cdef enum:
    MOST_IDLE = 10_000       # tasks of a dispatcher; each, with its driver, has about 450 bytes

cdef object FUTURE = asyncio.Future
cdef object TASK = asyncio.Task


@cython.final
cdef class TaskPool:
    pass


cdef TaskPool new_pool(Reactor reactor):
    """The loop's thread."""
    if reactor.library.owner != "uvloop":
        raise MqError("the hook returned a coroutine, which needs a uvloop loop")
    cdef TaskPool pool = TaskPool.__new__(TaskPool)
    pool.loop = new_task_loop(reactor)
    return pool


cdef void close_pool(TaskPool pool) noexcept:
    """Those that run go on."""
    cdef Driver driver
    pool.closed = True
    while pool.idle is not None:
        driver = pool.idle
        drop_first(pool)
        retire(driver)


cdef Driver take_driver(TaskPool pool, object coroutine, object variables, CounterRow row):
    """A driver, which is to start the coroutine. `variables`: the context that is its own."""
    cdef Driver driver
    if row.task_name is None:
        row.task_name = f"{row.plugin}:{row.hook}"
    while pool.idle is not None:
        driver = pool.idle
        drop_first(pool)
        if has_it_alone(driver):
            break
        retire(driver)
    else:
        driver = new_driver(pool.loop)
    if driver.is_debugged and BEGINS_ANEW:
        FUTURE.__init__(driver.task, loop=pool.loop.loop)  # where asyncio debugs, it notes who called the hook
    if driver.name is not row.task_name:
        TASK.set_name(driver.task, row.task_name)
        driver.name = row.task_name
    driver.coroutine = coroutine
    driver.variables = variables
    driver.over = False
    return driver


cdef void drop_first(TaskPool pool) noexcept:
    """Of those that are idle. The caller has it."""
    cdef Driver driver = pool.idle
    pool.idle = driver.next_idle
    driver.next_idle = None
    pool.idle_count -= 1


cdef bint has_it_alone(Driver driver) noexcept:
    """An idle one: nobody has kept it, as a callback, or its task. The caller has one reference, the task has the other."""
    return references(<PyObject *>driver) == 2 and is_untouched(driver)


cdef void let_go(TaskPool pool, Driver driver, Drops *drops) noexcept:
    """The coroutine is over, and what it came to is taken: to the idle ones, unless somebody knows its task. What is to be
    dropped is put into `drops`. The caller has the driver."""
    if driver.task is None:
        return  # somebody has the task, and may ask what it was of
    drop_later(drops, driver.coroutine)
    driver.coroutine = None
    drop_later(drops, driver.variables)
    driver.variables = None
    if driver.ended != NULL:
        wait_no_longer(driver)
    if pool.closed or pool.idle_count >= MOST_IDLE:
        drop_later(drops, driver.task)
        driver.task = None
        return
    driver.cancels = 0
    if driver.cancel_message is not None:
        drop_later(drops, driver.cancel_message)
        driver.cancel_message = None
    driver.next_idle = pool.idle
    pool.idle = driver
    pool.idle_count += 1


seal(TaskPool)
