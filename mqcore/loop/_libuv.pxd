# The part of libuv that mqcore calls, as a table of functions that belongs to whoever owns the loop.
#
# libuv keeps its public handle layout since 1.0: every handle begins with `data` and `loop`. Nothing else of any
# structure is touched, sizes come from uv_handle_size(), and so no libuv header is needed.

from libc.stdint cimport uint64_t

cdef struct uv_loop_t:
    void *data

cdef struct uv_handle_t:
    void *data        # stays NULL: uvloop takes what stands here for an object of its own
    uv_loop_t *loop

cdef enum:            # uv_handle_type, fixed since libuv 1.0
    UV_ASYNC = 1
    UV_CHECK = 2
    UV_IDLE = 6
    UV_POLL = 8
    UV_PREPARE = 9
    UV_TIMER = 13

ctypedef void (*uv_callback)(uv_handle_t *) noexcept nogil
ctypedef void (*uv_walk_callback)(uv_handle_t *, void *) noexcept nogil
ctypedef void (*uv_poll_callback)(uv_handle_t *, int status, int events) noexcept nogil

cdef struct LibUV:
    # The order is that of SYMBOLS in _libuv.pyx.
    int (*run)(uv_loop_t *, int) noexcept nogil
    const char *(*version_string)() noexcept nogil
    size_t (*handle_size)(int kind) noexcept nogil
    uint64_t (*hrtime)() noexcept nogil                 # ns, monotonic
    uint64_t (*now)(const uv_loop_t *) noexcept nogil   # ms, as of the loop's last look at the clock
    void (*close)(uv_handle_t *, uv_callback) noexcept nogil
    void (*walk)(uv_loop_t *, uv_walk_callback, void *) noexcept nogil
    int (*fileno)(const uv_handle_t *, int *fd) noexcept nogil
    int (*is_active)(const uv_handle_t *) noexcept nogil
    int (*backend_fd)(const uv_loop_t *) noexcept nogil
    void (*ref)(uv_handle_t *) noexcept nogil
    void (*unref)(uv_handle_t *) noexcept nogil
    int (*timer_init)(uv_loop_t *, uv_handle_t *) noexcept nogil
    int (*timer_start)(uv_handle_t *, uv_callback, uint64_t timeout, uint64_t repeat) noexcept nogil
    int (*timer_stop)(uv_handle_t *) noexcept nogil
    int (*poll_init)(uv_loop_t *, uv_handle_t *, int fd) noexcept nogil
    int (*poll_start)(uv_handle_t *, int events, uv_poll_callback) noexcept nogil
    int (*poll_stop)(uv_handle_t *) noexcept nogil
    int (*async_init)(uv_loop_t *, uv_handle_t *, uv_callback) noexcept nogil
    int (*async_send)(uv_handle_t *) noexcept nogil
    int (*idle_init)(uv_loop_t *, uv_handle_t *) noexcept nogil
    int (*idle_start)(uv_handle_t *, uv_callback) noexcept nogil
    int (*idle_stop)(uv_handle_t *) noexcept nogil
    int (*prepare_init)(uv_loop_t *, uv_handle_t *) noexcept nogil
    int (*prepare_start)(uv_handle_t *, uv_callback) noexcept nogil
    int (*check_init)(uv_loop_t *, uv_handle_t *) noexcept nogil
    int (*check_start)(uv_handle_t *, uv_callback) noexcept nogil

cdef class Library:
    """The libuv of one owner of loops; lives as long as the process."""
    cdef LibUV table
    cdef readonly str owner      # "uvloop" or "pyuv"
    cdef readonly str path       # the file of the owner's extension module
    cdef readonly str version    # libuv's, such as "1.52.1"

    cdef int check_alone(self) except -1

cdef Library library_of(object loop)
cdef uv_loop_t *pointer_of(object loop) except NULL
