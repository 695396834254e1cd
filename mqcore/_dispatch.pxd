# The engine: chains of plugins, and the steps that messages take through them.

from ._context cimport Context
from ._message cimport Control, Entry, Message

cdef class Chain:
    """The plugins that implement one hook, in order. Immutable: a change makes a new one."""
    cdef Hook hook
    cdef Entry *entries             # one for each plugin, and a last one without a function
    cdef tuple functions            # keep what the entries point to
    cdef tuple contexts
    cdef bint coroutines            # some hook is a coroutine function

cdef class Hook:
    cdef readonly str name
    cdef readonly object spec
    cdef readonly Dispatcher dispatcher
    cdef Py_ssize_t extra           # how many arguments it has after context and message
    cdef Chain chain

    cdef int check_call(self, tuple args, object done) except -1
    cpdef object run_one(self, Message message, tuple args, object done)

cdef class Dispatcher(Control):
    cdef readonly object plugins
    cdef dict hooks                 # name -> Hook
    cdef dict contexts              # Plugin -> Context, in order
    cdef list retired               # contexts of plugins that were replaced
    cdef list jobs                  # called in a turn; any thread may append
    cdef bint sweep_due             # a chain went that may have been the last to name a retired context
    cdef double hold_timeout        # s
    cdef unsigned int max_retries
    cdef unsigned int until_sample  # steps until the next one that is timed
    cdef object ending
    cdef object task_options        # of the tasks of coroutine hooks

    cdef int advance(self, Message message, Chain chain, Entry *entry) noexcept
    cdef int judge(self, Message message, object value) noexcept
    cdef int settle(self, Message message, object value, int early) noexcept
    cdef int hook_raised(self, Message message, object error) noexcept
    cdef Chain start_over(self, Message message, Chain chain)
    cdef int start_coroutine(self, Message message, object coroutine) noexcept
    cdef void coroutine_ended(self, Message message, object task) noexcept
    cdef object begin(self, Chain chain, Message message, tuple args, object done)
    cdef object finish(self, Message message, int verdict)
    cdef void conclude(self, Message message, object outcome) noexcept
    cdef void end_open_steps(self) noexcept
    cdef void sweep(self) noexcept
