"""libuv's handles, each in one allocation with what we keep of it. No Python, and no GIL."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from ._atomic cimport add
from ._libuv cimport LibUV, uv_callback, uv_handle_t

cdef int handles_made = 0   # atomic
cdef int handles_freed = 0


def handles():
    """How many libuv handles this process has made and freed: `(made, freed)`. Equal when every dispatcher is closed and
    its loop has run once more. For tests; any thread."""
    return handles_made, handles_freed


cdef Handle *new_handle(LoopState *state, int kind) noexcept nogil:
    """A handle that is not initialised yet; NULL when there is no memory."""
    cdef Handle *handle = <Handle *>calloc(1, header_size() + state.uv.handle_size(kind))
    if handle != NULL:
        handle.loop = state
    return handle


cdef void opened(LoopState *state) noexcept nogil:
    """It was initialised: it has to be closed."""
    add(&handles_made, 1)
    state.open_handles += 1


cdef void close_handle(Handle *handle) noexcept nogil:
    """Its memory goes with its close callback."""
    handle.loop.uv.close(uv_of(handle), on_closed)


cdef void on_closed(uv_handle_t *uv_handle) noexcept nogil:
    cdef Handle *handle = header_of(uv_handle)
    cdef LoopState *state = handle.loop
    add(&handles_freed, 1)
    state.open_handles -= 1
    free(handle)
    if state.open_handles == 0:
        state.all_closed(state)


cdef void arm(Handle *handle, uv_callback callback) noexcept nogil:
    """Start a timer for `handle.due`.

    libuv adds the timeout to the loop's own time, which is in whole ms and as old as the loop's last look at the clock.
    Both count from the same start as uv_hrtime(), so the due time, rounded up, less the loop's time can be late but not
    early.
    """
    cdef LibUV *uv = handle.loop.uv
    cdef uint64_t due = (handle.due + NS_PER_MS - 1) // NS_PER_MS
    cdef uint64_t now = uv.now(handle.loop.pointer)
    uv.timer_start(uv_of(handle), callback, due - now if due > now else 0, 0)  # cannot fail: open, with a callback
