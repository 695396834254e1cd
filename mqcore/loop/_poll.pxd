# The polls of a loop: one for each fd that is watched, shared by all who watch it.

from ._state cimport LoopState, Watch

cdef enum:      # libuv's UV_READABLE and UV_WRITABLE
    C_READ = 1
    C_WRITE = 2

cdef void open_polls(LoopState *state) noexcept nogil
cdef void close_polls(LoopState *state) noexcept nogil
cdef bint poll_again(LoopState *state) noexcept nogil
cdef Watch *any_watch(LoopState *state) noexcept nogil
cdef int add_watch(LoopState *state, Watch *watch, int fd, int wanted) noexcept nogil
cdef int change_watch(Watch *watch, int wanted) noexcept nogil
cdef bint remove_watch(LoopState *state, Watch *watch) noexcept nogil
cdef bint is_active(Watch *watch) noexcept nogil
cdef int lost_for(Watch *watch) noexcept nogil
cdef bint tell_lost(LoopState *state) noexcept nogil
cdef bint renew_some(LoopState *state) noexcept nogil
