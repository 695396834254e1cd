# What looks out for a loop that does not turn: a thread in C, which never takes the GIL and touches no Python object.

from libc.stdint cimport uint64_t

from ._state cimport Caller, LoopState

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass

ctypedef void (*dump_function)(int fd, void *thread_state) noexcept nogil  # writes a stack; see find_dump()

cdef enum:
    LEVELS = 4                  # how often a block is told of: after the limit, and after some times that are longer
    LAG_BUCKETS = 12            # the last has no bound

cdef struct Asked:
    # What the thread wants to be told in Python, by somebody who has the GIL.
    uint64_t turn               # in which the block is; 0: nothing
    Caller *caller              # NULL: nobody that is known
    uint64_t calls              # of the caller
    uint64_t lasted             # ns, at least

cdef struct Span:
    # For how long something has been the same, as far as the thread has seen.
    uint64_t since              # ns
    uint64_t late               # ns by which the thread that looks came too late since then
    uint64_t waited             # ns that the loop's thread had waited for a processor by then
    int told                    # levels

cdef struct Lookout:
    LoopState *state
    Caller *(*native_caller)(void *owner, Lookout *) noexcept nogil  # NULL: there are no native plugins
    void *native_owner
    Caller *callers             # all that there are, for good; atomic
    Caller nobody               # whose a block is that is no plugin's
    # Of the loop's thread.
    uint64_t turn               # even: one began; odd: it ended, and libuv polls; atomic
    uint64_t woke               # ns: when libuv last came back from there
    uint64_t turns
    uint64_t turned_ns
    uint64_t longest_ns
    uint64_t lags[LAG_BUCKETS]
    unsigned long ident         # of the loop's thread, as Python has it,
    uint64_t native_ident       # and as the system has it; atomic
    void *python_thread         # its PyThreadState
    # Of the thread that looks.
    pthread_t thread
    pthread_mutex_t lock        # for `asked`
    Asked asked
    uint64_t running_turn       # a turn in which the loop is known to run; atomic
    int wake[2]                 # pipes: to this thread,
    int bell[2]                 # from it to whoever tells more,
    int peek[2]                 # and for read_safely()
    int backend                 # libuv's epoll or kqueue
    int output                  # where lines are written
    int delays                  # the file that says how long the loop's thread waited for a processor; -1: there is none
    uint64_t delays_of          # that thread
    bint stopping               # atomic
    bint parked                 # it waits for the loop to wake up; atomic
    bint started
    # As it was ordered.
    uint64_t levels[LEVELS]     # ns; the first is the limit
    uint64_t abort_after        # ns; 0: never
    dump_function dump          # NULL: no stack without the GIL
    bint as_json

cdef void close_one(int *fd) noexcept nogil
cdef void init_lookout(Lookout *lookout) noexcept nogil
cdef int start_looking(Lookout *lookout) noexcept nogil
cdef void stop_looking(Lookout *lookout) noexcept nogil
cdef void let_go(Lookout *lookout) noexcept nogil
cdef void turn_ended(Lookout *lookout, uint64_t now) noexcept nogil
cdef void turn_began(Lookout *lookout, uint64_t now) noexcept nogil
cdef void note_thread(void *lookout) noexcept
cdef bint read_safely(Lookout *lookout, void *address, void *to, size_t size) noexcept nogil
cdef void add_caller(Lookout *lookout, Caller *caller) noexcept
cdef bint is_known(Lookout *lookout, Caller *caller) noexcept nogil
cdef uint64_t lag_bound(int bucket) noexcept nogil
