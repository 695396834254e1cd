# A message and its place in a step: its states, and the one function that changes them.

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .loop._atomic cimport fence, set, store_version
from .loop._call cimport take_error
from .loop._lifetime cimport Lifetime
from .loop._list cimport Link, List, append, first, replace, unlink
from .loop._reactor cimport Caller, Handle, Reactor

cdef extern from *:
    """
    #ifdef MQCORE_DEBUG
    #include <stdio.h>
    #include <stdlib.h>
    /* From each state, a bit for each that may follow. */
    static const unsigned char mqcore_legal[6] = {
        /* IDLE       */ 1 << 1 | 1 << 2,
        /* TAKEN      */ 1 << 0 | 1 << 2,
        /* RUNNING    */ 1 << 0 | 1 << 3 | 1 << 5,
        /* HELD       */ 1 << 2 | 1 << 4 | 1 << 5,
        /* GIVEN_BACK */ 1 << 5,
        /* QUEUED     */ 1 << 2,
    };
    #define mqcore_check_state(state, expected) do { \
            if ((state) != (expected)) { \
                fprintf(stderr, "mqcore: a message in state %d has to be in state %d\\n", (int)(state), (expected)); \
                abort(); \
            } \
        } while (0)
    #define mqcore_check_move(state, before, after) do { \
            if ((state) != (before) || !(mqcore_legal[before] >> (after) & 1)) { \
                fprintf(stderr, "mqcore: a message in state %d is moved from %d to %d\\n", (int)(state), (before), (after)); \
                abort(); \
            } \
        } while (0)
    #define mqcore_check_room(count, most) do { \
            if ((count) >= (most)) { \
                fprintf(stderr, "mqcore: more than %d references are to be dropped at the end\\n", (most)); \
                abort(); \
            } \
        } while (0)
    #else
    #define mqcore_check_state(state, expected) ((void)0)
    #define mqcore_check_move(state, before, after) ((void)0)
    #define mqcore_check_room(count, most) ((void)0)
    #endif
    """
    void check_state "mqcore_check_state"(uint8_t state, int expected) noexcept nogil
    void check_room "mqcore_check_room"(int count, int most) noexcept nogil
    void check_move "mqcore_check_move"(uint8_t state, int before, int after) noexcept nogil

cdef enum State:
    IDLE = 0          # in no step
    TAKEN = 1         # by run_many(), which has not come to it yet
    RUNNING = 2       # a hook of the step is being called, or about to be, or the step is ending
    HELD = 3          # a plugin holds the message
    GIVEN_BACK = 4    # by another thread, or abandoned, or behind such a one; still in its bucket
    QUEUED = 5        # given back; goes on in a tick

cdef enum Reference:
    # How a hold refers to its message, in `Message.reference`.
    NO_REFERENCE = 0  # there is no hold, or it is over
    STRONG = 1        # the hold has a reference: of a native plugin, of a coroutine, or as the finalizer cannot be trusted
    WEAK = 2          # HELD, and abandoned when nobody else refers to it. It becomes that, and anything else, with the GIL only

cdef enum Decision:
    # What was decided, in `Message.decision`: how to go on, or how the step ends.
    UNDECIDED = 0
    TO_CONTINUE = 1   # with the next plugin; after the last, outcome CONTINUE
    TO_COMPLETE = 2
    TO_RETRY = 3
    TO_FAIL = 4       # Message.error says why
    TO_CANCEL = 5     # likewise

cdef enum Reason:
    # Why a step failed, where that is no exception that was raised: `Message.error` is made of it when it is first read.
    NO_REASON = 0
    TIMED_OUT = 1
    ABANDONED = 2
    TOO_MANY_RETRIES = 3
    CANCELLED = 4
    CLOSED = 5

cdef struct StepCounts:
    # Rule 16: entered == continued + completed + failed + cancelled + held + running.
    uint64_t entered
    uint64_t continued
    uint64_t completed
    uint64_t failed
    uint64_t cancelled
    uint64_t held
    uint64_t running

cdef extern from *:
    """
    #include <stdint.h>

    /* Holds end within 1, 2, 4 ... 32,768 ms, or later. */
    #define MQCORE_HOLD_TIMES 17

    static inline int mqcore_hold_time(uint64_t ns)
    {
        uint64_t ms = ns ? (ns - 1) / 1000000 : 0;
        int log = 63 - __builtin_clzll(2 * ms + 1);
        return log < MQCORE_HOLD_TIMES ? log : MQCORE_HOLD_TIMES - 1;
    }
    """
    enum:
        HOLD_TIMES "MQCORE_HOLD_TIMES"
    int hold_time "mqcore_hold_time"(uint64_t ns) noexcept nogil

cdef struct Counters:
    # Of one plugin and hook in one dispatcher.
    Caller caller           # first: to know the counters is to know the caller
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
    uint64_t held                   # now
    uint64_t retry_limits
    uint64_t hold_times[HOLD_TIMES]  # holds that are over, by how long they took

cdef struct TimeoutBucket:
    # The held messages that share one hold_timeout, in the order in which they were held: the first is the next due.
    uint64_t timeout        # ns; 0: none
    List held               # borrowed Messages
    TimeoutBucket *next

cdef struct Entry:
    # One plugin in a chain; the last entry of a chain has neither function.
    PyObject *function      # borrowed from the chain; NULL: a native plugin's
    PyObject *context       # borrowed from the chain: the plugin's Context
    PyObject *plugin        # borrowed: its name
    PyObject *hook          # borrowed: the hook's name, interned, never freed
    PyObject *row           # borrowed from the dispatcher: the CounterRow of plugin and hook
    Counters *counters      # of that
    HoldLists *lists        # of the dispatcher
    TimeoutBucket *bucket
    void *native            # the C function of a native plugin
    void *handle            # its MQ_Context
    int kind                # how it is called: for native/ to know

cdef union ByState:
    # What a message has in one state or in another.
    void *native            # HELD by a native plugin: what stands for its hold; else NULL
    Link given              # GIVEN_BACK, or deallocated: in the list of those; not linked, its first field is NULL, too

cdef struct HoldLists:
    # Where the messages of one dispatcher are that nobody is just calling a hook for, and its books. They belong to the
    # dispatcher's thread, which changes them without the GIL while it runs native hooks; only the lists of what was given
    # back and of the dead belong to whoever has the GIL.
    PyObject *reactor       # borrowed
    TimeoutBucket *buckets
    List queued             # owned Messages
    List given              # owned Messages, each of which is in its bucket still: so this list has a link of its own
    List dead               # Messages that were deallocated while HELD, and are in their buckets still: not freed yet
    uint64_t given_count    # of both lists
    StepCounts steps
    uint32_t steps_version  # odd: they are just being changed, without the GIL; atomic
    uint64_t holds_begun
    uint64_t holds_ended
    Link *cursor            # how far a scan of the buckets is: the next message, or the end of its bucket; NULL: there is none
    Handle *deadline        # one timer for all buckets; `due` is 0 when it is stopped
    HoldLists *next_open    # in the list of those of all dispatchers
    PyObject *stand_in      # owned: a plain Message, for one that was deallocated while it was held
    PyObject *native        # owned: the NativeSide; NULL as long as there are no native plugins
    uint64_t fast_path_off  # bool: a step or the dispatcher was ended, or the chains changed, while native hooks may be called


@cython.final
cdef class CounterRow:
    """The counters of one plugin and hook in one dispatcher: for its whole life, whatever code of that name comes and goes."""
    cdef Counters counters
    cdef str plugin
    cdef str hook                   # None: not of a hook, but of the callbacks of timers and watchers
    cdef str task_name              # of the tasks that its coroutines run in; None: there were none yet
    cdef tuple texts                # keeps what the caller's names point to

cdef class Message:
    # First all that a step needs which nobody holds: with what an object begins with, that is one cache line.
    cdef Entry *entry               # the plugin that has or had it last in this step; NULL when in none
    cdef PyObject *last_hook        # the name of the hook of the current or last step
    cdef object failure             # an exception or None; with a `reason`, until `error` was read: what that is made of
    cdef uint8_t state              # State
    cdef uint8_t skipping           # bool: in this step, whoever goes on with continue or retry means complete
    cdef uint8_t decision           # Decision
    cdef uint8_t reason             # Reason
    cdef uint8_t by_token           # bool: the hook returned its Hold: nobody else can give back
    cdef uint8_t reference          # Reference
    cdef uint8_t finalized          # bool
    cdef uint8_t suspended          # bool: `run` returned None; `done` is to follow
    cdef readonly uint32_t retries
    cdef object __weakref__
    cdef object chain               # keeps `entry`, once the step is suspended
    cdef PyObject *token            # borrowed: the live Hold of the current hold or call
    cdef Link link                  # in a bucket or in the queue
    cdef uint64_t since             # when the hold began, in ns of uv_hrtime(); 0: how long it was is counted
    cdef tuple args                 # the hook's extra arguments
    cdef object done
    cdef object variables           # the contextvars of `run`, where coroutine hooks may need them
    cdef object task                # of the coroutine hook that has it
    cdef ByState by_state
    cdef dict plugin_data
    cdef object content             # the payload

    cdef void track(self) noexcept
    cdef void fail(self, object error, Drops *drops) noexcept
    cdef void fail_for(self, int reason, PyObject *row, Drops *drops) noexcept
    cdef PyObject *current_plugin(self) noexcept

cdef class HoldBase(Lifetime):
    """The base of Hold: refers to its message; the live token of it until it is over."""
    cdef Message message_held

cdef class NativeSide:
    """What native/ does for one dispatcher. It stands above the core, which calls it by these methods and by nothing else. All
    with the GIL, on the dispatcher's thread."""
    cdef PyObject *runner           # borrowed: the Runner; for native/ to know, as is the table of its handles
    cdef void *table

    cdef int call(self, Message message, Entry *entry, bint timed, Drops *drops) noexcept
    cdef Py_ssize_t run_many(
        self, object chain, tuple messages, Py_ssize_t index, list outcomes, object done, object variables) noexcept
    cdef void hold_ended(self, void *native) noexcept
    cdef int claim(self, Message message, Drops *drops) noexcept
    cdef void close(self) noexcept

# ---------------------------------------------------------------------------------------------------------------- Drops

cdef enum:
    # What a hook leaves is dropped before another one is called; with what a step keeps that is a dozen at most.
    MOST_DROPS = 20

cdef struct Drops:
    # What is to be dropped when the books are in order: on the stack of each entry point, whose last line is flush().
    int count
    bint stops                      # timers and watchers of a hold that is over are to be stopped, if they are few
    PyObject *items[MOST_DROPS]     # owned
    PyObject *task                  # owned, or NULL: to be cancelled first

cdef inline void no_drops(Drops *drops) noexcept nogil:
    drops.count = 0
    drops.stops = False
    drops.task = NULL

cdef inline void put_aside(Drops *drops, PyObject *reference) noexcept:
    """Steal `reference`, and drop it in flush()."""
    check_room(drops.count, MOST_DROPS)
    drops.items[drops.count] = reference
    drops.count += 1

cdef inline void drop_later(Drops *drops, object reference) noexcept:
    """Keep `reference` until flush(): who overwrites what refers to it cannot run anybody's code by that."""
    Py_INCREF(reference)
    put_aside(drops, <PyObject *>reference)

cdef inline void cancel_later(Drops *drops, object task) noexcept:
    """Have flush() cancel the task of a coroutine hook."""
    Py_INCREF(task)
    drops.task = <PyObject *>task

cdef inline void cancel_none(Drops *drops) noexcept:
    """No longer; the caller has a reference to it."""
    Py_DECREF(<object>drops.task)
    drops.task = NULL

cdef inline void flush(Drops *drops, Reactor reactor) noexcept:
    """Drop what was put aside. Anybody's code may run: the caller must have changed all that it had to change."""
    if drops.count or drops.task != NULL or drops.stops:
        flush_all(drops, reactor)

cdef inline void report_raised(Reactor reactor, str where) noexcept:
    """Report what was just raised, where no step can take it."""
    cdef PyObject *error = take_error()
    reactor.report(<object>error, where)
    Py_DECREF(<object>error)

cdef void flush_all(Drops *drops, Reactor reactor) noexcept
cdef CounterRow new_row(str plugin, str hook)
cdef int make_stand_in(HoldLists *lists) except -1
cdef void end_hold(Message message, Drops *drops) noexcept
cdef void end_token(Message message, Drops *drops) noexcept
cdef bint finalizer_is_trusted(Message message) noexcept
cdef void abandon(Message message) noexcept
cdef void stand_in_for(PyObject *dead, Message stand_in) noexcept
cdef void write_off(PyObject *dead) noexcept

cdef inline int unless_skipping(Message message, int decision) noexcept nogil:
    """What becomes of a decision: where `skip_others` was called, continue and retry are complete."""
    if message.skipping and (decision == TO_CONTINUE or decision == TO_RETRY):
        return TO_COMPLETE
    return decision

# --------------------------------------------------------------------------------------------------------------- States


@cython.nonecheck(False)
cdef inline void move(HoldLists *lists, Message message, int before, int after) noexcept nogil:
    """Change a message's state: with `take_place_of`, the only place where that is done (rule 21).

    Nothing is allocated, dropped, formatted or called in here, so no Python code runs between two of its lines. The lists hold
    no references by themselves: a message that is QUEUED or GIVEN_BACK is owned by its list, by a reference that the caller
    took before and takes over after. HELD is owned only where `reference` is STRONG.
    """
    check_move(message.state, before, after)
    if before == GIVEN_BACK:
        unlink(&message.by_state.given)
        lists.given_count -= 1
        leave_bucket(lists, message)
    elif before == HELD and after != GIVEN_BACK:
        leave_bucket(lists, message)
    elif before == QUEUED:
        unlink(&message.link)
    elif after == RUNNING:
        lists.steps.entered += 1
        lists.steps.running += 1
    elif before == RUNNING and after == IDLE:
        count_end(lists, message)
    if before == IDLE:
        message.skipping = False  # here, with the GIL: another thread may set it while the step before ends without
    if after == HELD:
        enter_bucket(lists, message)
    elif after == QUEUED:
        append(&lists.queued, &message.link)
    elif after == GIVEN_BACK:
        append(&lists.given, &message.by_state.given)
        lists.given_count += 1
    message.state = after


cdef inline void take_place_of(HoldLists *lists, Message dead, Message stand_in) noexcept:
    """HELD -> IDLE for a message that has no reference any more; IDLE -> HELD for a new one, which takes its place in the
    bucket, and all that the step needs. To the books that is one hold."""
    check_state(dead.state, HELD)
    check_state(stand_in.state, IDLE)
    stand_in.entry, dead.entry = dead.entry, stand_in.entry
    stand_in.suspended, dead.suspended = dead.suspended, stand_in.suspended
    stand_in.chain, dead.chain = dead.chain, stand_in.chain
    stand_in.args, dead.args = dead.args, stand_in.args
    stand_in.done, dead.done = dead.done, stand_in.done
    stand_in.variables, dead.variables = dead.variables, stand_in.variables
    stand_in.last_hook = dead.last_hook
    stand_in.since = dead.since
    stand_in.retries = dead.retries
    if lists.cursor == &dead.link:
        lists.cursor = &stand_in.link
    replace(&dead.link, &stand_in.link)
    stand_in.reference = WEAK
    stand_in.state = HELD
    dead.reference = NO_REFERENCE
    dead.state = IDLE


@cython.nonecheck(False)
cdef inline void count_end(HoldLists *lists, Message message) noexcept nogil:
    lists.steps.running -= 1
    if message.decision == TO_CONTINUE:
        lists.steps.continued += 1
    elif message.decision == TO_COMPLETE:
        lists.steps.completed += 1
    elif message.decision == TO_CANCEL:
        lists.steps.cancelled += 1
    else:
        lists.steps.failed += 1


@cython.nonecheck(False)
cdef inline void enter_bucket(HoldLists *lists, Message message) noexcept nogil:
    cdef TimeoutBucket *bucket = message.entry.bucket
    lists.holds_begun += 1
    message.entry.counters.holds += 1
    message.entry.counters.held += 1
    count_held(lists, 1)
    message.since = (<Reactor>lists.reactor).state.uv.hrtime()
    append(&bucket.held, &message.link)
    if bucket.timeout and first(&bucket.held) == &message.link:
        arm_deadline(lists, message.since + bucket.timeout)
    (<Reactor>lists.reactor).set_busy(True)


@cython.nonecheck(False)
cdef inline void leave_bucket(HoldLists *lists, Message message) noexcept nogil:
    lists.holds_ended += 1
    message.entry.counters.held -= 1
    count_held(lists, -1)
    if lists.cursor == &message.link:
        lists.cursor = message.link.next
    unlink(&message.link)


@cython.nonecheck(False)
cdef inline void count_held_time(Message message, uint64_t now) noexcept nogil:
    """A hold is over, for good; once for each."""
    cdef Counters *counters = message.entry.counters
    counters.held_ns += now - message.since
    counters.hold_times[hold_time(now - message.since)] += 1
    message.since = 0


cdef inline void count_held(HoldLists *lists, int change) noexcept nogil:
    """One more is held in place of running, or one less: a snapshot sees both or neither."""
    store_version(&lists.steps_version, lists.steps_version + 1)
    fence()
    set(&lists.steps.held, lists.steps.held + change)
    set(&lists.steps.running, lists.steps.running - change)
    store_version(&lists.steps_version, lists.steps_version + 1)


@cython.nonecheck(False)
cdef inline PyObject *message_at(Link *link) noexcept nogil:
    """The Message, borrowed; NULL for no link."""
    return NULL if link == NULL else <PyObject *>(<char *>link - <size_t>&(<Message><PyObject *>NULL).link)

cdef void arm_deadline(HoldLists *lists, uint64_t due) noexcept nogil
