# What libuv's callbacks touch, without the GIL and on the loop's thread only: handles, and the state of one reactor.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport dev_t, ino_t

from ._atomic cimport store_flag
from ._libuv cimport LibUV, uv_callback, uv_handle_t, uv_loop_t
from ._list cimport Link, List, first, unlink

cdef enum:
    NS_PER_MS = 1_000_000
    PORTION_NS = NS_PER_MS    # for each phase of a tick
    PORTION_STEP = 16         # entries, from one look at the clock to the next

cdef extern from *:
    """
    #define mqcore_set_caller(place, value) __atomic_store_n(place, value, __ATOMIC_RELAXED)
    """
    void set_caller "mqcore_set_caller"(Caller **, Caller *) noexcept nogil

cdef struct Handle:
    # Stands before a libuv handle in one allocation, so that the handle's own `data` can stay NULL.
    LoopState *loop
    uint64_t due              # timers: when, in ns of uv_hrtime(); 0: it is stopped
    bint rung                 # timers: it has fired
    Poll *poll                # uv_poll_t of one fd

cdef struct Poll:
    # One fd that is watched, for all who watch it: see _poll.
    LoopState *loop
    Link link                 # in the list of all, or of those that are lost
    Link started              # in the list of those to be looked at before libuv polls
    List watches              # who watches the fd, in order
    Link *next                # in that list, where there are very many: who is told next; NULL: the first
    int readers               # how many of them want to read,
    int writers               # and to write
    int wanted                # the events that it is polled for
    int fd
    uint32_t generation       # tells events of this poll from those of another one with the same fd
    dev_t device              # the file that the fd stood for when it was watched
    ino_t inode
    Handle *handle            # its uv_poll_t; NULL: it is in the epoll
    int renewals              # as the loop's, when it was put in there
    int lost                  # 0, or the error for which it is polled no more: its watches are told one after the other

cdef struct Watch:
    # Somebody who watches an fd, together with others: see _poll.
    Poll *poll                # NULL: it is not watched, or was lost
    Link link                 # in the poll's list
    Link ready                # in the list of what is ready
    PyObject *owner           # borrowed: the Watcher
    int wanted                # the events that it waits for
    int came                  # those that came
    int lost                  # 0, or the error for which the fd cannot be watched any more: the watch is ready
    bint is_nogil             # its owner needs no GIL

cdef struct Caller:
    # A hook of a plugin, or the callbacks of its timers and watchers: what the loop calls, for the watchdog to name. Lives as
    # long as its dispatcher.
    const char *plugin        # names as they stand in a line of the log; NULL: it is no plugin's,
    const char *hook          # or no hook's
    uint64_t calls
    uint64_t blocked          # how many of them kept the loop for longer than the watchdog lets them; atomic
    Caller *next              # in the list of all that the watchdog knows

cdef struct LoopState:
    PyObject *owner           # borrowed: the Reactor, which outlives its handles
    LibUV *uv
    uv_loop_t *pointer
    uv_callback on_idle       # runs a tick
    void (*all_closed)(LoopState *) noexcept nogil
    Handle *idle
    Handle *prepare
    Handle *alarm             # a timer, for the next turn of the wheel
    List polls
    List lost                 # polls that are lost, and have watches that have not been told
    Poll **poll_of            # by fd
    int poll_places
    List started              # polls
    uint32_t generation       # of the newest poll
    Handle *epoll_handle      # uv_poll_t of the epoll; NULL before the first poll
    int epoll
    Link *renewing            # the next of the polls that a new epoll does not have yet; NULL: it has all
    int renewals              # how many new ones there were
    int fruitless             # ticks since it last did not pay to look at the epoll again; 0: it may
    int looks_left            # how many new polls need no walk over all handles
    List ready[2]             # watches: of those whose owner needs the GIL, and of those whose owner does not
    size_t ready_count[2]
    size_t open_handles
    Caller **calling          # points to the Caller that is being called now; NULL there: none that is known, or a native one
    void *watchdog            # its WatchdogState, see _watchdog_thread; NULL: there is none
    bint awake                # `idle` is active: a tick will come
    bint asked                # another tick was requested since this one began
    bint gil_needed           # and there is something in it that needs the GIL; atomic
    bint sees_double_polls    # its libuv does, in uv_poll_init()
    bint forked               # this is the child of a fork: libuv's side is the parent's

cdef struct Portion:
    # How long one phase of a tick may go on.
    LibUV *uv
    uint64_t until
    unsigned int entries

cdef inline void set_calling(LoopState *state, Caller *caller) noexcept nogil:
    """From now on this one has the loop: for the watchdog, which may look at any moment."""
    set_caller(state.calling, caller)

cdef inline Portion start_portion(LibUV *uv) noexcept nogil:
    cdef Portion portion
    portion.uv = uv
    portion.until = 0
    portion.entries = 0
    return portion

cdef inline bint has_budget(Portion *portion) noexcept nogil:
    """Whether there is time for one entry more. To be asked before each; the first is always granted, for free."""
    cdef unsigned int entry = portion.entries
    portion.entries = entry + 1
    return entry % PORTION_STEP != 1 or has_time(portion)

cdef inline bint has_time(Portion *portion) noexcept nogil:
    cdef uint64_t now = portion.uv.hrtime()
    if portion.until == 0:
        portion.until = now + PORTION_NS
    return now < portion.until

cdef inline size_t header_size() noexcept nogil:
    return (sizeof(Handle) + 15) & ~<size_t>15

cdef inline uv_handle_t *uv_of(Handle *handle) noexcept nogil:
    return <uv_handle_t *>(<char *>handle + header_size())

cdef inline Handle *header_of(uv_handle_t *uv_handle) noexcept nogil:
    return <Handle *>(<char *>uv_handle - header_size())

cdef inline Watch *watch_of(Link *ready) noexcept nogil:
    return <Watch *>(<char *>ready - <size_t>&(<Watch *>NULL).ready)

cdef inline Watch *first_ready(LoopState *state, bint is_nogil) noexcept nogil:
    cdef Link *link = first(&state.ready[is_nogil])
    return NULL if link == NULL else watch_of(link)

cdef inline void unlink_ready(LoopState *state, Watch *watch) noexcept nogil:
    """Take `watch` out of the list of what is ready."""
    unlink(&watch.ready)
    state.ready_count[watch.is_nogil] -= 1

cdef inline void request_nogil_tick(LoopState *state) noexcept nogil:
    """Ask for a tick, in which there may be nothing to do that needs the GIL. The loop's thread."""
    state.asked = True
    if not state.awake:
        state.awake = True
        state.uv.idle_start(uv_of(state.idle), state.on_idle)  # cannot fail: there is a callback

cdef inline void request_tick(LoopState *state) noexcept nogil:
    """Ask for a tick with the GIL. The loop's thread."""
    store_flag(&state.gil_needed, True)
    request_nogil_tick(state)

cdef Handle *new_handle(LoopState *state, int kind) noexcept nogil
cdef void opened(LoopState *state) noexcept nogil
cdef void close_handle(Handle *handle) noexcept nogil
cdef void arm(Handle *handle, uv_callback callback) noexcept nogil
