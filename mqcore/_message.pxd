# A message's place in its step: who has control of it, since when, and what was given back.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .loop._lifetime cimport Lifetime
from .loop._reactor cimport Handle, Reactor

cdef enum State:
    IDLE = 0          # in no step
    RUNNING = 1       # a hook of the step is being called, or about to be
    HELD = 2          # a plugin holds the message
    GIVEN_BACK = 3    # by another thread; still in its lane
    QUEUED = 4        # given back; goes on in a turn

cdef enum Verdict:
    # What was decided, in `Message.verdict`: how to go on, or how the step ends.
    UNDECIDED = 0
    TO_CONTINUE = 1   # with the next plugin; after the last, outcome CONTINUE
    TO_COMPLETE = 2
    TO_RETRY = 3
    TO_FAIL = 4       # Message.error says why
    TO_CANCEL = 5     # likewise

cdef enum:
    TURN_NS = 1_000_000      # how long, and
    TURN_ENTRIES = 4_096     # how many messages one turn may go on with

cdef struct Books:
    # Rule 16: entered == continued + completed + failed + cancelled + held + running.
    uint64_t entered
    uint64_t continued
    uint64_t completed
    uint64_t failed
    uint64_t cancelled
    uint64_t held
    uint64_t running

cdef struct Counters:
    # Of one plugin and hook in one dispatcher.
    uint64_t calls
    uint64_t holds
    uint64_t continues
    uint64_t completes
    uint64_t retries
    uint64_t failures
    uint64_t timeouts
    uint64_t abandoned
    uint64_t refused
    uint64_t samples        # calls that were timed
    uint64_t sampled_ns     # how long they took together
    uint64_t longest_ns
    uint64_t held_ns

cdef struct Entry:
    # One plugin in a chain; the last entry of a chain has neither function.
    PyObject *function      # borrowed from the chain; NULL: a native plugin's
    PyObject *context       # borrowed from the chain: the plugin's Context, a Holder
    PyObject *plugin        # borrowed: its name
    PyObject *hook          # borrowed: the hook's name, kept for ever
    Counters *counters      # of the context's Tally
    Lane *lane
    void *native            # the C function of a native plugin
    void *handle            # its MQ_Context
    int kind                # how it is called: for _native to know

cdef struct Lane:
    # The held messages that share one hold_timeout, in the order in which they were held: the first is the next due.
    uint64_t timeout        # ns; 0: none
    PyObject *first         # borrowed Messages
    PyObject *last
    Lane *next

cdef class Message:
    cdef object __weakref__
    cdef Entry *entry               # the plugin that has or had it last in this step; NULL when in none
    cdef object chain               # keeps `entry`, once the step is suspended
    cdef PyObject *token            # borrowed: the live Hold of the current hold or call
    cdef PyObject *previous         # borrowed Messages: neighbours in a lane or in the queue
    cdef PyObject *following
    cdef PyObject *next_given       # in the list of those that other threads gave back
    cdef PyObject *last_hook        # the name of the hook of the current or last step
    cdef uint64_t since             # when the hold began, in ns of uv_hrtime(); 0: how long it was is counted
    cdef uint8_t state              # State
    cdef uint8_t verdict            # Verdict
    cdef uint8_t by_token           # bool: the hook returned its Hold: nobody else can give back
    cdef uint8_t strong             # bool: the hold has a reference, as the finalizer cannot be trusted
    cdef uint8_t finalized          # bool
    cdef uint8_t suspended          # bool: `run` returned None; `done` is to follow
    cdef readonly uint32_t retries
    cdef readonly object error
    cdef tuple args                 # the hook's extra arguments
    cdef object done
    cdef object variables           # the contextvars of `run`, where coroutine hooks may need them
    cdef object task                # of the coroutine hook that has it
    cdef void *native               # what stands for a native plugin's hold, or NULL
    cdef dict plugin_data

    cdef void track(self) noexcept
    cdef void fail(self, object error) noexcept
    cdef void let_go(self) noexcept

cdef class Tally:
    """The counters of one plugin and hook."""
    cdef Counters counters

cdef class Holder(Lifetime):
    """The base of Context: a plugin, as one who can have control."""
    cdef Control owner
    cdef readonly object plugin
    cdef str name
    cdef dict tallies               # hook name -> Tally

    cdef Tally tally_of(self, str hook)
    cdef int count_refused(self, str hook, str what) except -1

cdef class Token(Lifetime):
    """The base of Hold: refers to its message as long as it is the live token of it."""
    cdef Control owner
    cdef readonly Message message

    cdef void expire(self) noexcept

cdef class Control:
    """Who has control of which message: the base of the dispatcher."""
    cdef object __weakref__
    cdef Reactor reactor
    cdef Lane *lanes
    cdef PyObject *first_queued     # owned Messages
    cdef PyObject *last_queued
    cdef PyObject *first_given      # owned Messages, that other threads gave back; with the GIL
    cdef PyObject *last_given
    cdef uint64_t given_count
    cdef Handle *deadline           # one timer for all lanes; `due` is 0 when it is stopped
    cdef Books books
    cdef uint32_t books_version     # odd: they are just being changed, without the GIL; atomic
    cdef bint passing               # messages are just passed through native plugins, one after the other: so many are through
    cdef uint64_t passed
    cdef uint64_t holds_begun
    cdef uint64_t holds_ended
    cdef void *native               # the handles of native plugins, or NULL when there are none
    cdef bint sweep_due             # a chain went that was the last to name a retired context

    cdef int close_loop(self) except -1
    cdef void drain(self) noexcept
    cdef int open_control(self, object loop) except -1
    cdef Lane *lane_of(self, double seconds) except NULL
    cdef Books balance(self) noexcept
    cdef void begin_hold(self, Message message) noexcept
    cdef void enter_lane(self, Message message) noexcept nogil
    cdef void leave_lane(self, Message message, int verdict) noexcept nogil
    cdef void take_back(self, Message message, int verdict) noexcept
    cdef void let_hold_go(self, Message message) noexcept
    cdef void enqueue(self, Message message) noexcept nogil
    cdef void unlink_queued(self, Message message) noexcept
    cdef void release(self, Message message, int verdict) noexcept
    cdef void give_from_elsewhere(self, Message message, int verdict) noexcept
    cdef bint collect_given(self) noexcept
    cdef void held_weakly(self, Message message) noexcept
    cdef list all_held(self)
    cdef void arm_deadline(self, uint64_t due) noexcept nogil
    cdef void expire(self) noexcept
    cdef void resume(self, Message message) noexcept

cdef struct NativeSide:
    # What _native does for the core. With the GIL.
    int (*call)(Control control, Message message, Entry *entry, bint timed) noexcept
    Py_ssize_t (*begin_many)(Control control, object chain, list messages, Py_ssize_t index, list outcomes,
                             object done) except -1
    void (*hold_ended)(Control control, Message message) noexcept
    void (*disturb)(Control control) noexcept
    void (*absorb)(Control control) noexcept
    void (*close)(Control control) noexcept

cdef NativeSide native_side         # set by _native

cdef int give_back(Holder context, Message message, int verdict, object error) except -1
cdef bint has_control(Holder context, Message message) noexcept
cdef void count_given(Counters *counters, int verdict) noexcept nogil
cdef int refuse_give_back(Holder context, Message message, str what) except -1
