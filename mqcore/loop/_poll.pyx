# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""The polls of a loop: one uv_poll_t for each fd that is watched, shared by all who watch it.

libuv allows one poll for an fd, so it watches for what all of them want together. When events come, the watches that want
them are put into a list of what is ready, from which a turn calls them.

A user may close an fd at any time. libuv aborts the process when it is about to poll an fd that is not open, and takes a
number that was closed and opened again for the old file. So each poll knows which file it was started for, and those that
were started since the loop polled last are looked at just before it polls next. A watch whose fd was closed is *lost*: it is
ready once more, with `lost` set.

No Python, and no GIL. The loop's thread.
"""

from libc.errno cimport EBADF, EEXIST, ENOMEM
from libc.stdlib cimport free, realloc
from posix.stat cimport fstat, struct_stat

from ._libuv cimport UV_POLL, LibUV, uv_handle_t
from ._list cimport Link, after, append, first, init_list, is_empty, is_linked, unlink
from ._state cimport (
    Handle, LoopState, Watch, close_handle, first_ready, free_if_unlisted, header_of, new_handle, opened, request_nogil_tick,
    request_tick, unlink_ready, uv_of)


# --------------------------------------------------------------------------------------------------------------- Watches

cdef int add_watch(LoopState *state, Watch *watch, int fd, int wanted) noexcept nogil:
    """Have `watch` become ready whenever one of the events `wanted` comes on `fd`. It must not be active. 0, or libuv's error:
    then it is not active."""
    cdef int failed = 0
    cdef Handle *poll = poll_of(state, fd)
    if poll != NULL and not is_same_file(poll):
        lose(poll, EBADF)
        poll = NULL
    if poll == NULL:
        poll = open_poll(state, fd, &failed)
        if poll == NULL:
            return failed
    else:
        poll.wanted = 0  # the file may have been closed and opened again, which takes it out of the epoll
    watch.wanted = wanted
    watch.came = 0
    watch.lost = 0
    watch.poll = poll
    watch.ready.next = NULL
    append(&poll.watches, &watch.link)
    count_wanted(poll, wanted, 1)
    failed = update(poll)
    if failed < 0:
        remove_watch(state, watch)
    return failed


cdef int change_watch(Watch *watch, int wanted) noexcept nogil:
    """Watch for other events. 0, or libuv's error."""
    cdef int before = watch.wanted
    watch.wanted = wanted
    if watch.poll == NULL:
        return -watch.lost
    count_wanted(watch.poll, before, -1)
    count_wanted(watch.poll, wanted, 1)
    return update(watch.poll)


cdef bint remove_watch(LoopState *state, Watch *watch) noexcept nogil:
    """It does not become ready any more. Whether it was active."""
    cdef Handle *poll = watch.poll
    cdef bint active = is_active(watch)
    if is_linked(&watch.ready):
        unlink_ready(state, watch)
    watch.lost = 0
    if poll != NULL:
        leave_poll(watch)
        update_or_lose(poll)
    return active


cdef bint is_active(Watch *watch) noexcept nogil:
    """Whether it is watched for, or lost and not told so."""
    return watch.poll != NULL or watch.lost != 0


cdef void leave_poll(Watch *watch) noexcept nogil:
    unlink(&watch.link)
    count_wanted(watch.poll, watch.wanted, -1)
    watch.poll = NULL


cdef void count_wanted(Handle *poll, int wanted, int change) noexcept nogil:
    if wanted & C_READ:
        poll.readers += change
    if wanted & C_WRITE:
        poll.writers += change


cdef Watch *watch_at(Link *link) noexcept nogil:
    return <Watch *>(<char *>link - <size_t>&(<Watch *>NULL).link)


# ----------------------------------------------------------------------------------------------------------------- Ready

cdef void make_ready(LoopState *state, Watch *watch) noexcept nogil:
    if is_linked(&watch.ready):
        return
    append(&state.ready[watch.is_nogil], &watch.ready)
    state.ready_count[watch.is_nogil] += 1
    if watch.is_nogil:
        request_nogil_tick(state)
    else:
        request_tick(state)


# --------------------------------------------------------------------------------------------------------------- Polls

cdef Handle *poll_of(LoopState *state, int fd) noexcept nogil:
    """The poll of `fd`, or NULL."""
    return state.polls[fd] if 0 <= fd < state.poll_places else NULL


cdef Handle *open_poll(LoopState *state, int fd, int *failed) noexcept nogil:
    """A new poll; NULL: `failed` is libuv's error."""
    cdef struct_stat status
    cdef Handle *poll = NULL
    failed[0] = -EBADF
    if fd < 0 or fstat(fd, &status) != 0:
        return NULL
    failed[0] = -EEXIST
    if not state.sees_double_polls and is_polled(state, fd):
        return NULL
    failed[0] = -ENOMEM
    if fd < state.poll_places or add_places(state, fd):
        poll = new_handle(state, UV_POLL)
    if poll == NULL:
        return NULL
    failed[0] = state.uv.poll_init(state.pointer, uv_of(poll), fd)
    if failed[0] < 0:
        free(poll)
        return NULL
    opened(state)
    init_list(&poll.watches)
    poll.fd = fd
    poll.device = status.st_dev
    poll.inode = status.st_ino
    state.polls[fd] = poll
    return poll


cdef struct Search:
    # For the handle that has an fd.
    LibUV *uv
    int fd
    bint found


cdef bint is_polled(LoopState *state, int fd) noexcept nogil:
    """Whether another handle on the loop has this fd. The libuv of pyuv does not notice that itself, and then aborts."""
    cdef Search search = [state.uv, fd, False]
    state.uv.walk(state.pointer, compare_fd, &search)
    return search.found


cdef void compare_fd(uv_handle_t *handle, void *data) noexcept nogil:
    cdef Search *search = <Search *>data
    cdef int fd
    if search.uv.fileno(handle, &fd) == 0 and fd == search.fd:
        search.found = True


cdef bint add_places(LoopState *state, int fd) noexcept nogil:
    cdef int places = 64
    cdef int each
    cdef Handle **polls
    while places <= fd:
        places *= 2
    polls = <Handle **>realloc(state.polls, places * sizeof(Handle *))
    if polls == NULL:
        return False
    for each in range(state.poll_places, places):
        polls[each] = NULL
    state.polls = polls
    state.poll_places = places
    return True


cdef int update(Handle *poll) noexcept nogil:
    """Let libuv watch for what the watches want together, or close the poll when there are none. 0, or libuv's error."""
    cdef LoopState *state = poll.loop
    cdef int wanted = (C_READ if poll.readers else 0) | (C_WRITE if poll.writers else 0)
    cdef int failed
    if wanted == 0:
        close_poll(poll)
        return 0
    if wanted == poll.wanted or state.forked:
        return 0
    if not is_same_file(poll):
        lose(poll, EBADF)
        return -EBADF
    failed = state.uv.poll_start(uv_of(poll), wanted, on_poll)
    if failed < 0:
        return failed
    poll.wanted = wanted
    if not is_linked(&poll.started):
        append(&state.started, &poll.started)
    return 0


cdef void update_or_lose(Handle *poll) noexcept nogil:
    cdef int failed = update(poll)
    if failed < 0 and not is_empty(&poll.watches):
        lose(poll, -failed)


cdef void lose(Handle *poll, int error) noexcept nogil:
    """The fd cannot be polled any more: let go of it. Its watches are told in a turn."""
    cdef Watch *watch
    while not is_empty(&poll.watches):
        watch = watch_at(first(&poll.watches))
        leave_poll(watch)
        watch.lost = error
        make_ready(poll.loop, watch)
    close_poll(poll)


cdef void close_poll(Handle *poll) noexcept nogil:
    """Its memory goes with its close callback."""
    cdef LoopState *state = poll.loop
    state.polls[poll.fd] = NULL
    poll.fd = -1
    if not state.forked:  # the epoll is the parent's
        close_handle(poll)


cdef bint is_same_file(Handle *poll) noexcept nogil:
    cdef struct_stat status
    return fstat(poll.fd, &status) == 0 and status.st_dev == poll.device and status.st_ino == poll.inode


# ---------------------------------------------------------------------------------------------------------- libuv's side

cdef void on_poll(uv_handle_t *uv_handle, int status, int events) noexcept nogil:
    cdef Handle *poll = header_of(uv_handle)
    cdef Link *link
    cdef Watch *watch
    if status < 0:
        # libuv has stopped the poll: for EPOLLERR, which the watchers meet as readiness, or for a closed fd.
        if not is_same_file(poll):
            lose(poll, EBADF)
            return
        events = C_READ | C_WRITE
        poll.wanted = 0
    link = first(&poll.watches)
    while link != NULL:
        watch = watch_at(link)
        if watch.wanted & events:
            watch.came |= watch.wanted & events
            make_ready(poll.loop, watch)
        link = after(&poll.watches, link)
    if status < 0:
        update_or_lose(poll)


cdef void open_polls(LoopState *state) noexcept nogil:
    """Once, when the loop is attached: have polls looked at right before libuv polls.

    libuv runs the newest of its prepare handles first. So all that are started from now on run before this one, and may close
    what fd they like; only one that is older than the dispatcher can still make libuv abort in that way.
    """
    state.uv.prepare_start(uv_of(state.prepare), on_prepare)  # cannot fail


cdef void close_polls(LoopState *state) noexcept nogil:
    """Once, when nothing is watched any more."""
    while not is_empty(&state.started):
        take_started(state)


cdef Watch *any_watch(LoopState *state) noexcept nogil:
    """Some active watch whose owner needs the GIL, or NULL when there is none."""
    cdef int fd
    for fd in range(state.poll_places):
        if state.polls[fd] != NULL:  # it is closed with its last watch
            return watch_at(first(&state.polls[fd].watches))
    return first_ready(state, False)  # what is lost


cdef Handle *take_started(LoopState *state) noexcept nogil:
    """The first of those that were started; NULL when it was closed meanwhile."""
    cdef Handle *poll = <Handle *>(<char *>first(&state.started) - <size_t>&(<Handle *>NULL).started)
    unlink(&poll.started)
    if poll.closed:
        free_if_unlisted(poll)
        return NULL
    return poll


cdef void on_prepare(uv_handle_t *uv_handle) noexcept nogil:
    """Look at the polls that were started since libuv polled last."""
    cdef LoopState *state = header_of(uv_handle).loop
    cdef Handle *poll
    while not is_empty(&state.started):
        poll = take_started(state)
        if poll != NULL and poll.fd >= 0 and not is_same_file(poll):
            lose(poll, EBADF)
