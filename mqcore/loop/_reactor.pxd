# The loop as a dispatcher sees it: what is ready, and the turns in which it is called.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from posix.types cimport dev_t, ino_t

from ._libuv cimport Library, LibUV, uv_callback, uv_handle_t, uv_loop_t
from ._wheel cimport Node, Wheel

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef struct Handle:
    # Stands before a libuv handle in one allocation, so that the handle's own `data` can stay NULL.
    LoopState *loop
    uint64_t due              # timers: when, in ns of uv_hrtime(); 0: it is stopped
    bint rung                 # timers: it has fired
    bint closed               # its close callback has run
    int fd                    # polls: -1 once closed
    dev_t device              # polls: the file that the fd stood for when it was watched
    ino_t inode
    int wanted                # polls: the events that libuv watches for
    bint started              # polls: is in the list of those to be looked at before libuv polls them
    Handle *next_started
    Watch *first              # polls: who watches the fd, in order
    Watch *last

cdef struct Watch:
    # Somebody who watches an fd, together with others: see _poll.
    Handle *poll              # NULL: it is not watched, or the fd was lost
    Watch *next               # of the same poll
    Watch *previous
    Watch *next_ready         # in the ring of what is ready
    Watch *previous_ready
    PyObject *owner           # borrowed: the Watcher
    int wanted                # the events that it waits for
    int came                  # those that came
    int lost                  # 0, or the error for which the fd cannot be watched any more: to be told
    bint ready                # is in the ring
    bint bare                 # its owner needs no GIL

cdef struct LoopState:
    # What libuv's callbacks touch, without the GIL and on the loop's thread only.
    PyObject *owner           # borrowed: the Loop, which outlives its handles
    LibUV *uv
    uv_loop_t *pointer
    Handle *idle
    Handle *prepare
    Handle *alarm             # a timer, for the next turn of the wheel
    Handle **polls            # by fd
    int poll_places
    Handle *first_started     # polls
    Watch *ready[2]           # first of each ring: of those whose owner needs the GIL, and of the bare ones
    size_t ready_count[2]
    size_t open_handles
    bint awake                # `idle` is active: a turn will come
    bint asked                # another turn was asked for since this one began
    bint gil_needed           # and there is something in it that needs the GIL; atomic

cdef class Due:
    """Something to be done in a turn."""
    cdef void in_turn(self) noexcept
    cdef void loop_closes(self) noexcept

cdef class Loop:
    cdef readonly object loop           # the uvloop.Loop or pyuv.Loop
    cdef Library library
    cdef LoopState state
    cdef unsigned long thread           # that of the loop; 0 once closed or forked, so that one comparison tells all
    cdef bint closed
    cdef bint forked
    cdef bint sees_double_polls         # its libuv does
    cdef bint busy                      # keeps the loop running (libuv: `waker` is referenced)
    cdef Handle *waker                  # uv_async_t: a turn asked for by another thread
    cdef Wheel wheel                    # the timers that run
    cdef bint (*bare_turn)(Loop) noexcept nogil  # of _bare; NULL when there are no native plugins
    cdef size_t running_timers
    cdef list due                       # what was given to `soon`
    cdef object escaped                 # a KeyboardInterrupt or SystemExit that pyuv would swallow
    cdef object __weakref__

    cdef int open_loop(self, object loop) except -1
    cdef int close_loop(self) except -1
    cdef int check(self, str what) except -1
    cdef int refuse(self, str what) except -1
    cdef void wake(self) noexcept nogil
    cdef void soon(self, Due due) noexcept
    cdef void set_busy(self, bint busy) noexcept nogil
    cdef void turn(self) noexcept
    cdef void drain(self) noexcept
    cdef void come_to_rest(self) noexcept nogil
    cdef bint engaged(self) noexcept nogil
    cdef void rest(self) noexcept nogil
    cdef void tell(self, object logger, int level, str text, tuple args, object error) noexcept
    cdef void raised(self, object error, str where) noexcept
    cdef void escape(self, object error) noexcept
    cdef Handle *make_handle(self, int kind) except NULL
    cdef void start_node(self, Node *node, uint64_t delay) noexcept nogil
    cdef uint64_t tick_in(self, uint64_t delay) noexcept nogil
    cdef void stop_node(self, Node *node) noexcept nogil
    cdef void set_alarm(self, uint64_t tick) noexcept nogil

cdef inline size_t header_size() noexcept nogil:
    return (sizeof(Handle) + 15) & ~<size_t>15

cdef inline uv_handle_t *uv_of(Handle *handle) noexcept nogil:
    return <uv_handle_t *>(<char *>handle + header_size())

cdef inline Handle *header_of(uv_handle_t *uv_handle) noexcept nogil:
    return <Handle *>(<char *>uv_handle - header_size())

cdef void arm(Handle *handle, uv_callback callback) noexcept nogil
cdef void stir(LoopState *state) noexcept nogil
cdef void ask_for_turn(LoopState *state) noexcept nogil
cdef Handle *new_handle(LoopState *state, int kind) noexcept nogil
cdef void opened(LoopState *state) noexcept nogil
cdef void close_handle(Handle *handle) noexcept nogil
cdef void free_if_unlisted(Handle *handle) noexcept nogil
cdef Handle *take_started(LoopState *state) noexcept nogil
cdef void unlink_ready(LoopState *state, Watch *watch) noexcept nogil
cdef bint ends_program(object error) noexcept
