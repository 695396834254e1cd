"""Coroutine hooks: the task that one runs in, and its end.

What a coroutine returns means what a hook's return value means; what follows from it is for `_dispatch` to say.
"""

import asyncio
import sys
from collections.abc import Coroutine

cimport cython

from ._message cimport Message
from .loop._seal cimport seal

cdef extern from "Python.h":
    bint PyCoro_CheckExact(object)

cdef bint EAGER_TASKS = sys.version_info >= (3, 12)


cdef bint is_coroutine(object value) except -1:
    """Whether it has to be run in a task. Runs anybody's code, as `__class__` may be a property: what cannot tell is none."""
    if PyCoro_CheckExact(value):
        return True
    try:
        return isinstance(value, Coroutine)  # on CPython 3.11, asyncio takes generators for coroutines, too
    except Exception:
        return False


cdef object start_task(object coroutine, object loop, str name, object variables):
    """Run the coroutine in a task. Where CPython can, up to its first await at once: then the task may be done."""
    options = {"eager_start": True} if EAGER_TASKS else {}
    return asyncio.Task(coroutine, loop=loop, name=name, context=variables, **options)


cdef int watch_task(object task, object variables, object runner, Message message, task_ended ended) except -1:
    """Have `ended` called when the task ends, in a tick of its loop."""
    cdef TaskEnd end = TaskEnd.__new__(TaskEnd)
    end.runner = runner
    end.message = message
    end.ended = ended
    task.add_done_callback(end, context=variables)
    return 0


@cython.final
cdef class TaskEnd:

    def __call__(self, task):
        if task is not None and self.message.task is task:
            self.ended(self.runner, self.message, task)
        elif not task.cancelled():
            task.exception()  # the step ended without it: nobody is left to be told


seal(TaskEnd)
