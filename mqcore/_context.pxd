# A plugin's handles: on a dispatcher, and on one hold.

from cpython.object cimport PyObject

from ._holds cimport HoldTable
from ._message cimport CounterRow, HoldBase, Message
from .loop._lifetime cimport Lifetime
from .loop._list cimport Link, List

cdef class ReplacedContexts:
    """The contexts of one dispatcher's replaced plugins, until they are cleaned up."""
    cdef List in_use            # owned Contexts: a chain names them, so a step may reach them
    cdef List unused            # owned Contexts: no step can

    cdef void add(self, Context context) noexcept
    cdef void stop_using(self, Context context) noexcept
    cdef bint has_unused(self) noexcept
    cdef PyObject *take_unused(self) noexcept
    cdef PyObject *take_last(self) noexcept

cdef class Context(Lifetime):
    cdef HoldTable holds
    cdef dict rows              # (plugin, hook) -> CounterRow; the dispatcher's
    cdef readonly object plugin
    cdef str name
    cdef readonly dict data
    cdef readonly object log
    cdef bint forgiving         # on_error = "continue"
    cdef double hold_timeout    # s; 0: none
    cdef Py_ssize_t uses        # chains that name it
    cdef ReplacedContexts replaced       # where it goes when its plugin is replaced
    cdef Link retirement        # its place there
    cdef void *handle           # native plugins: the MQ_Context that stands for it

    cdef CounterRow row_of(self, str hook)

cdef class Hold(HoldBase):
    cdef Context context
    cdef PyObject *hook         # its name, interned, never freed

    cdef int give_back(self, int decision, object error) except -1
    cdef int refuse(self, str what) except -1

cdef ReplacedContexts new_replaced_contexts()
cdef Context new_context(HoldTable holds, dict rows, ReplacedContexts replaced, object plugin, double hold_timeout)
cdef int give_back(Context context, Message message, int decision, object error) except -1
cdef void log_failure(Context context, object error, PyObject *hook) noexcept
