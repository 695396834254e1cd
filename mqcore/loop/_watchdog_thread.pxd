# The watchdog's thread, in C: it never takes the GIL and touches no Python object.

from libc.stdint cimport uint64_t

from ._starvation cimport Delays, ThreadTimes, TimesFile
from ._state cimport Caller, LoopState

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass

ctypedef void (*dump_function)(int fd, void *thread_state) noexcept nogil  # writes a stack; see find_dump()

cdef enum:
    LEVELS = 4                  # how often a block is reported: after the limit, and after some times that are longer
    LAG_BUCKETS = 12            # the last has no bound

cdef struct Report:
    # What the thread requests of the reporter.
    uint64_t iteration          # in which the block is; 0: nothing
    Caller *caller              # NULL: nobody that is known
    uint64_t *counter           # what changes with each call of that, and is there as long as the watchdog
    uint64_t calls              # what it was
    uint64_t lasted             # ns, at least

cdef struct Span:
    # For how long something has been the same, as far as the thread has seen.
    uint64_t since              # ns
    uint64_t late               # ns by which the thread came too late since then
    ThreadTimes times           # of the loop's thread by then
    bint has_delays             # whether `delays` was taken: when it was seen for the second time
    Delays delays               # of all threads
    int reported                # levels

cdef struct WatchdogState

# Where a call does not change `calls` of its Caller, it says what does: as Report.counter has it.
ctypedef Caller *(*find_caller)(void *owner, WatchdogState *, uint64_t **counter) noexcept nogil

cdef struct WatchdogState:
    # Written before the threads start, and read by all.
    LoopState *state
    uint64_t levels[LEVELS]     # ns; the first is the limit
    uint64_t abort_after        # ns; 0: never
    dump_function dump          # NULL: no stack without the GIL
    int wakeup[2]               # pipes: to the watchdog's thread, written by the loop's,
    int requests[2]             # from it to the reporter,
    int probe[2]                # and of its own, for read_safely()
    int backend                 # libuv's epoll or kqueue
    int output                  # where lines are written
    pthread_t thread
    pthread_mutex_t lock        # for `report`
    bint started                # the loop's thread alone
    # Written by the loop's thread, with the GIL; read by the watchdog's.
    find_caller native_caller   # NULL: there are no native plugins; atomic
    void *native_owner          # written before that one, once
    Caller *callers             # all that there are, for good; atomic
    void *python_thread         # PyThreadState of the loop's thread
    uint64_t native_ident       # of that thread, as the system has it; atomic
    bint stopping               # atomic; also read by the reporter
    bint as_json                # atomic
    bint warns                  # lines that are no more than a warning are written; atomic
    # Written by the loop's thread, without the GIL; read by the watchdog's.
    uint64_t iteration          # even: one runs; odd: it ended, and libuv polls; atomic; also read by the reporter
    # Written by the loop's thread, without the GIL; read by whoever has it, for the figures.
    uint64_t polled_at          # ns: when libuv last came back from polling; the loop's thread alone
    uint64_t iterations
    uint64_t iterations_ns
    uint64_t longest_ns
    uint64_t lags[LAG_BUCKETS]
    # Written by the loop's thread, with the GIL; read by the reporter.
    unsigned long ident         # of the loop's thread, as Python has it
    # Written by the watchdog's thread.
    bint sleeping               # it waits for the loop to wake up; atomic; read by the loop's
    Report report               # under `lock`; read by the reporter
    TimesFile times             # of the loop's thread; its own
    Caller unattributed         # whose a block is that is no plugin's; `blocked` is written by the reporter
    # Written by the reporter; read by the watchdog's thread.
    uint64_t running_iteration  # an iteration in which the loop is known to run; atomic

cdef void close_one(int *fd) noexcept nogil
cdef void init_state(WatchdogState *watchdog) noexcept nogil
cdef int start_thread(WatchdogState *watchdog) noexcept nogil
cdef void stop_thread(WatchdogState *watchdog) noexcept nogil
cdef void close_files(WatchdogState *watchdog) noexcept nogil
cdef void iteration_ended(WatchdogState *watchdog, uint64_t now) noexcept nogil
cdef void iteration_began(WatchdogState *watchdog, uint64_t now) noexcept nogil
cdef void note_thread(void *watchdog) noexcept
cdef bint read_safely(WatchdogState *watchdog, void *address, void *to, size_t size) noexcept nogil
cdef void look_for_native(WatchdogState *watchdog, find_caller finder, void *owner) noexcept nogil
cdef void add_caller(WatchdogState *watchdog, Caller *caller) noexcept
cdef bint is_known(WatchdogState *watchdog, Caller *caller) noexcept nogil
cdef uint64_t lag_bound(int bucket) noexcept nogil
