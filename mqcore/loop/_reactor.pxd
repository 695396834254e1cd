# The loop as a dispatcher sees it: the phases of a tick, timers, and what is posted, by any thread.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ._call cimport ends_program
from ._libuv cimport Library, LibUV, uv_callback, uv_handle_t, uv_loop_t
from ._list cimport Link, List
from ._state cimport (
    Caller, Handle, LoopState, Portion, Watch, arm, close_handle, first_ready, has_budget, has_time, header_of, new_handle,
    opened, request_nogil_tick, request_tick, set_calling, start_portion, unlink_ready, uv_of)
from ._wheel cimport Node, Wheel

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef enum Phase:
    # Of a tick, in the order in which they run.
    NATIVE_PHASE            # native plugins: watchers, timers, give-backs; without the GIL, and first
    POSTED_PHASE            # tasks that were posted, by any thread
    IO_PHASE                # watchers that are ready
    TIMER_PHASE             # timers that are due
    NATIVE_GIL_PHASE        # native plugins, what of them needs the GIL
    TIMEOUT_PHASE           # holds that are over their timeout
    RESUME_PHASE            # messages that were given back
    STOP_PHASE              # timers and watchers of lifetimes that are over
    SWEEP_PHASE             # contexts of replaced plugins, and whatever else waits to be dropped
    PHASES

# Each runs for a portion (see Portion), and says whether there is more for another tick.
ctypedef bint (*phase_function)(void *owner) noexcept
ctypedef bint (*nogil_phase_function)(void *owner) noexcept nogil

cdef struct PhaseRow:
    phase_function function         # NULL: there is nothing to do in this phase
    void *owner

cdef class Task:
    """An object that can be posted: to post it allocates nothing, and while it is posted to post it again does nothing."""
    cdef Link posted

    cdef void run_posted(self) noexcept
    cdef void loop_closes(self) noexcept

cdef class Runnable:
    """What the loop keeps for a lifetime: a timer that runs, or a watcher."""
    cdef Link sibling               # in the lifetime's list, or in that of what is to be stopped

    cdef void run(self) noexcept
    cdef bint halt(self) noexcept

cdef class Reactor:
    cdef readonly object loop       # the uvloop.Loop or pyuv.Loop; None before it is attached
    cdef Library library
    cdef LoopState state
    cdef Caller *calling            # see there; where there is no runner that keeps it
    cdef unsigned long thread       # of the loop; 0 before it is attached, once closed or forked: one comparison tells all
    cdef bint closed
    cdef bint forked
    cdef object dispatcher          # the Dispatcher, kept alive from attach() to the last close callback
    cdef object pending_exit        # a KeyboardInterrupt or SystemExit that has not left through the loop yet
    cdef bint retries_exit          # it has to be tried again
    cdef PhaseRow phases[PHASES]    # that of NATIVE_PHASE has the next two in its place
    cdef nogil_phase_function run_nogil
    cdef void *nogil_owner
    cdef bint (*has_pending)(void *) noexcept nogil
    cdef void (*stop_when_idle)(void *) noexcept nogil
    cdef void *idle_owner
    cdef bint is_open               # its handles are: from attach() to close()
    cdef bint busy                  # keeps the loop running (libuv: `waker` is referenced)
    cdef Handle *waker              # uv_async_t: a tick requested by another thread
    cdef Wheel wheel                # the timers that run
    cdef size_t running_timers
    cdef List posted                # owned Tasks
    cdef size_t posted_count
    cdef List stopping              # owned Runnables
    cdef Link neighbours            # in the list of all that are open

    cdef void set_phase(self, int phase, phase_function function, void *owner) noexcept
    cdef void set_nogil_phase(self, nogil_phase_function function, void *owner) noexcept
    cdef void set_idle(self, bint (*has_pending)(void *) noexcept nogil, void (*stop_when_idle)(void *) noexcept nogil,
                       void *owner) noexcept
    cdef int check(self, str what) except -1
    cdef int refuse(self, str what) except -1
    cdef void request_tick(self) noexcept nogil
    cdef void wake(self) noexcept nogil
    cdef void post(self, Task task) noexcept
    cdef void stop_some(self) noexcept
    cdef void set_busy(self, bint busy) noexcept nogil
    cdef void start_node(self, Node *node, uint64_t delay) noexcept nogil
    cdef uint64_t tick_in(self, uint64_t delay) noexcept nogil
    cdef void stop_node(self, Node *node) noexcept nogil
    cdef void set_alarm(self, uint64_t tick) noexcept nogil
    cdef void tick(self) noexcept
    cdef void end_tick(self) noexcept nogil
    cdef void log(self, object logger, int level, str text, tuple args, object error) noexcept
    cdef void report(self, object error, str where) noexcept
    cdef void raise_through_loop(self, object error) noexcept
    cdef void report_failed(self, object error, str where) noexcept
    cdef void set_pending_exit(self, object error) noexcept

cdef Reactor new_reactor()
cdef PyObject *take_posted(Reactor reactor) noexcept
cdef void halt_one(PyObject *owner) noexcept
