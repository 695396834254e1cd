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
    PyObject *owner           # polls: the Poll, borrowed; NULL: nobody, any more
    LoopState *loop
    Handle *next              # polls: in the list of those that are ready
    Handle *next_started      # polls: in the list of those to be looked at before libuv polls them
    uint64_t due              # timers: when, in ns of uv_hrtime(); 0: it is stopped
    dev_t device              # polls: the file that the fd stood for when it was watched
    ino_t inode
    int fd
    int wanted                # polls: the events that libuv watches for
    int events                # polls: the events that came
    int status                # polls: 0, or libuv's error
    bint ready                # is in the list of what is ready
    bint started              # is in the list of started polls
    bint closed               # its close callback has run

cdef struct LoopState:
    # What libuv's callbacks touch, without the GIL and on the loop's thread only.
    PyObject *owner           # borrowed: the Loop, which outlives its handles
    LibUV *uv
    uv_loop_t *pointer
    Handle *idle
    Handle *prepare
    Handle *alarm             # a timer, for the next turn of the wheel
    Handle *first_ready
    Handle *last_ready
    Handle *first_started
    size_t ready_count
    bint awake                # `idle` is active: a turn will come
    bint asked                # another turn was asked for since this one began
    bint gil_needed           # and there is something in it that needs the GIL; atomic
    bint rung                 # `alarm` has fired

cdef enum:
    LOST = -10_000            # a status of our own: the fd was closed under its poll

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
    cdef bint busy                      # keeps the loop running (libuv: `waker` is referenced)
    cdef size_t open_handles
    cdef Handle *waker                  # uv_async_t: a turn asked for by another thread
    cdef Wheel wheel                    # the timers that run
    cdef bint (*bare_turn)(Loop) noexcept nogil  # of _native; NULL when there are no native plugins
    cdef size_t running_timers
    cdef dict polls                     # fd -> Poll
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
    cdef Handle *new_handle(self, int kind) except NULL
    cdef void opened(self) noexcept
    cdef void close_handle(self, Handle *handle) noexcept
    cdef void start_node(self, Node *node, uint64_t delay) noexcept nogil
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
cdef bint is_same_file(Handle *handle) noexcept nogil
cdef void on_poll(uv_handle_t *uv_handle, int status, int events) noexcept nogil
cdef void on_prepare(uv_handle_t *uv_handle) noexcept nogil
cdef void on_closed(uv_handle_t *uv_handle) noexcept with gil
cdef bint ends_program(object error) noexcept
