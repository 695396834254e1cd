# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""The polls of a loop: one for each fd that is watched, shared by all who watch it, for what they want together. When events
come, the watches that want them are put into a list of what is ready, from which a tick calls them.

A user may close an fd at any time, in any thread. libuv aborts the process when the system refuses an fd that it is about to
poll, so it must not know of the user's fds: on Linux they are in an epoll of our own, which alone libuv polls, and a number
that was closed is just an error there. Elsewhere each has a uv_poll_t: there an fd that another thread closes in the wrong
instant can still make libuv abort.

The system takes a number that was closed and opened again for the new file, and tells nobody that the old one is gone. So each
poll knows which file it was started for, and those that were started since the loop polled last are looked at just before it
polls next. A poll whose fd was closed is *lost*: each of its watches becomes ready once more, with `lost` set; so many in a
tick, however many they are.

No Python, and no GIL. The loop's thread.
"""

from libc.errno cimport EBADF, EEXIST, ENOENT, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close

from ._epoll cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLIN, EPOLLOUT, HAS_EPOLL, epoll_create, epoll_ctl,
    epoll_event, epoll_wait, replace_fd, set_nonblocking)
from ._libuv cimport UV_POLL, LibUV, uv_handle_t
from ._list cimport Link, after, append, first, init_list, is_empty, is_linked, unlink
from ._state cimport (
    Handle, LoopState, Poll, Watch, close_handle, first_ready, header_of, new_handle, opened, request_nogil_tick, request_tick,
    unlink_ready, uv_of)

cdef enum:
    MOST_EVENTS = 1_024   # from the epoll at once
    FRUITLESS = 16        # ticks, from one look at the epoll again that did not pay to the next
    FEW_HANDLES = 64      # so many may be looked at for each new poll
    MOST_TOLD = 4_096     # watches of one fd, for each time that its events come; and of fds that are lost, in a tick
    MOST_RENEWED = 256    # polls that are put into a new epoll, in a tick: each takes system calls


# --------------------------------------------------------------------------------------------------------------- Watches

cdef int add_watch(LoopState *state, Watch *watch, int fd, int wanted) noexcept nogil:
    """Have `watch` become ready whenever one of the events `wanted` comes on `fd`. It must not be active. 0, or the error,
    negative: then it is not active."""
    cdef int failed = 0
    cdef Poll *poll = find_poll(state, fd)
    if poll != NULL and not is_same_file(poll):
        lose(poll, EBADF)
        poll = NULL
    if poll == NULL:
        poll = open_poll(state, fd, &failed)
        if poll == NULL:
            return failed
    else:
        poll.wanted = 0  # the file may have been closed and opened again, which ends its being polled
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
    """Watch for other events. 0, or the error, negative."""
    cdef int before = watch.wanted
    watch.wanted = wanted
    if watch.poll == NULL:
        return -watch.lost
    count_wanted(watch.poll, before, -1)
    count_wanted(watch.poll, wanted, 1)
    return update(watch.poll)


cdef bint remove_watch(LoopState *state, Watch *watch) noexcept nogil:
    """It does not become ready any more. Whether it was active."""
    cdef Poll *poll = watch.poll
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


cdef int lost_for(Watch *watch) noexcept nogil:
    """0, or the error for which its fd cannot be watched any more."""
    return watch.lost if watch.poll == NULL else watch.poll.lost


cdef Watch *any_watch(LoopState *state) noexcept nogil:
    """Some active watch, or of those that are lost one whose owner needs the GIL; NULL when there is none."""
    cdef Link *link = first(&state.lost) if is_empty(&state.polls) else first(&state.polls)
    if link == NULL:
        return first_ready(state, False)
    return watch_at(first(&poll_at(link).watches))  # a poll is closed with its last watch


cdef void leave_poll(Watch *watch) noexcept nogil:
    if watch.poll.next == &watch.link:
        watch.poll.next = after(&watch.poll.watches, &watch.link)
    unlink(&watch.link)
    count_wanted(watch.poll, watch.wanted, -1)
    watch.poll = NULL


cdef void count_wanted(Poll *poll, int wanted, int change) noexcept nogil:
    if wanted & C_READ:
        poll.readers += change
    if wanted & C_WRITE:
        poll.writers += change


cdef Watch *watch_at(Link *link) noexcept nogil:
    return <Watch *>(<char *>link - <size_t>&(<Watch *>NULL).link)


cdef void make_ready(LoopState *state, Watch *watch) noexcept nogil:
    if is_linked(&watch.ready):
        return
    append(&state.ready[watch.is_nogil], &watch.ready)
    state.ready_count[watch.is_nogil] += 1
    if watch.is_nogil:
        request_nogil_tick(state)
    else:
        request_tick(state)


# ----------------------------------------------------------------------------------------------------------------- Polls

cdef Poll *find_poll(LoopState *state, int fd) noexcept nogil:
    """The poll of `fd`, or NULL."""
    return state.poll_of[fd] if 0 <= fd < state.poll_places else NULL


cdef Poll *poll_at(Link *link) noexcept nogil:
    return <Poll *>(<char *>link - <size_t>&(<Poll *>NULL).link)


cdef Poll *open_poll(LoopState *state, int fd, int *failed) noexcept nogil:
    """A new poll; NULL: `failed` is the error, negative."""
    cdef struct_stat status
    cdef Poll *poll
    failed[0] = -EBADF
    if fd < 0 or fstat(fd, &status) != 0:
        return NULL
    failed[0] = find_refusal(state, fd)
    if failed[0] < 0:
        return NULL
    failed[0] = -ENOMEM
    if fd >= state.poll_places and not add_places(state, fd):
        return NULL
    poll = <Poll *>calloc(1, sizeof(Poll))
    if poll == NULL:
        return NULL
    init_list(&poll.watches)
    state.generation += 1
    poll.generation = state.generation
    poll.renewals = state.renewals
    poll.loop = state
    poll.fd = fd
    poll.device = status.st_dev
    poll.inode = status.st_ino
    failed[0] = prepare_epoll(state, fd) if HAS_EPOLL else add_handle(poll)
    if failed[0] < 0:
        free(poll)
        return NULL
    append(&state.polls, &poll.link)
    state.poll_of[fd] = poll
    return poll


cdef bint add_places(LoopState *state, int fd) noexcept nogil:
    cdef int places = 64
    cdef int each
    cdef Poll **polls
    while places <= fd:
        places *= 2
    polls = <Poll **>realloc(state.poll_of, places * sizeof(Poll *))
    if polls == NULL:
        return False
    for each in range(state.poll_places, places):
        polls[each] = NULL
    state.poll_of = polls
    state.poll_places = places
    return True


cdef int update(Poll *poll) noexcept nogil:
    """Poll for what the watches want together, or close the poll when there are none. 0, or the error, negative."""
    cdef LoopState *state = poll.loop
    cdef int wanted = (C_READ if poll.readers else 0) | (C_WRITE if poll.writers else 0)
    cdef int failed
    if wanted == 0:
        close_poll(poll)
        return 0
    if poll.lost:
        return -poll.lost
    if poll.renewals != state.renewals:
        poll.renewals = state.renewals
        poll.wanted = 0  # it is not in this epoll yet
    if wanted == poll.wanted or state.forked:
        return 0
    if not is_same_file(poll):
        lose(poll, EBADF)
        return -EBADF
    if poll.handle == NULL:
        failed = set_in_epoll(poll, wanted)
    else:
        failed = state.uv.poll_start(uv_of(poll.handle), wanted, on_poll)
    if failed == -EBADF or failed == -ENOENT:  # closed since, by another thread
        lose(poll, EBADF)
        return -EBADF
    if failed < 0:
        return failed
    poll.wanted = wanted
    if not is_linked(&poll.started):
        append(&state.started, &poll.started)
    return 0


cdef void update_or_lose(Poll *poll) noexcept nogil:
    cdef int failed = update(poll)
    if failed < 0 and not poll.lost:
        lose(poll, -failed)


cdef void lose(Poll *poll, int error) noexcept nogil:
    """The fd, which is watched, cannot be polled any more: let go of it. Its watches are told in ticks."""
    stop_polling(poll)
    poll.lost = error
    append(&poll.loop.lost, &poll.link)
    request_nogil_tick(poll.loop)


cdef bint tell_lost(LoopState *state) noexcept nogil:
    """Make watches ready whose fd is lost, some of them. Whether there are more."""
    cdef int left = MOST_TOLD
    cdef Poll *poll
    cdef Watch *watch
    while left > 0 and not is_empty(&state.lost):
        left -= 1
        poll = poll_at(first(&state.lost))
        watch = watch_at(first(&poll.watches))
        leave_poll(watch)
        watch.lost = poll.lost
        make_ready(state, watch)
        if is_empty(&poll.watches):
            close_poll(poll)
    return not is_empty(&state.lost)


cdef void close_poll(Poll *poll) noexcept nogil:
    """It has no watches any more."""
    if poll.lost:
        unlink(&poll.link)
    else:
        stop_polling(poll)
    free(poll)


cdef void stop_polling(Poll *poll) noexcept nogil:
    cdef LoopState *state = poll.loop
    state.poll_of[poll.fd] = NULL
    if state.renewing == &poll.link:
        state.renewing = after(&state.polls, &poll.link)
    unlink(&poll.link)
    if is_linked(&poll.started):
        unlink(&poll.started)
    if state.forked:  # the epoll is the parent's
        return
    if poll.handle != NULL:
        close_handle(poll.handle)
    else:
        epoll_ctl(state.epoll, EPOLL_CTL_DEL, poll.fd, 0, 0)  # an error, where it was closed: then there is nothing to do
    if HAS_EPOLL and is_empty(&state.polls):
        state.uv.unref(uv_of(state.epoll_handle))


cdef bint is_same_file(Poll *poll) noexcept nogil:
    cdef struct_stat status
    return fstat(poll.fd, &status) == 0 and status.st_dev == poll.device and status.st_ino == poll.inode


cdef void events_came(Poll *poll, int events) noexcept nogil:
    """Tell those who want them. As long as the fd is ready its events come again: so some may wait for the next time."""
    cdef Link *link = first(&poll.watches) if poll.next == NULL else poll.next
    cdef int left = MOST_TOLD
    cdef Watch *watch
    while link != NULL and left > 0:
        left -= 1
        watch = watch_at(link)
        if watch.wanted & events:
            watch.came |= watch.wanted & events
            make_ready(poll.loop, watch)
        link = after(&poll.watches, link)
    poll.next = link


# ----------------------------------------------------------------------------------------------------- An epoll of our own

cdef int prepare_epoll(LoopState *state, int fd) noexcept nogil:
    """Make ready for a poll of `fd`: open the epoll with the first one. 0, or the error, negative."""
    cdef Handle *handle
    cdef int failed
    if set_nonblocking(fd) != 0:
        return -errno
    if state.epoll_handle != NULL:
        if is_empty(&state.polls):
            state.uv.ref(uv_of(state.epoll_handle))
        return 0
    handle = new_handle(state, UV_POLL)
    if handle == NULL:
        return -ENOMEM
    state.epoll = epoll_create()
    failed = -errno if state.epoll < 0 else state.uv.poll_init(state.pointer, uv_of(handle), state.epoll)
    if failed < 0:
        if state.epoll >= 0:
            close(state.epoll)
        free(handle)
        return failed
    opened(state)
    state.epoll_handle = handle
    poll_epoll(state)
    return 0


cdef void poll_epoll(LoopState *state) noexcept nogil:
    """Have libuv poll our epoll, which is empty; and put it into libuv's now, before libuv comes to that and finds it there.

    The system limits in how many ways one file may be polled through both, to 500. So it refuses an fd that is too many, and
    not our epoll with all that is in it, for which libuv would abort.
    """
    state.uv.poll_start(uv_of(state.epoll_handle), C_READ, on_epoll)  # cannot fail: nobody else knows this fd
    epoll_ctl(state.uv.backend_fd(state.pointer), EPOLL_CTL_ADD, state.epoll, EPOLLIN, <uint64_t>state.epoll)


cdef int set_in_epoll(Poll *poll, int wanted) noexcept nogil:
    cdef uint32_t events = (EPOLLIN if wanted & C_READ else 0) | (EPOLLOUT if wanted & C_WRITE else 0)
    cdef uint64_t data = <uint64_t>poll.generation << 32 | <uint32_t>poll.fd
    cdef int likely = EPOLL_CTL_MOD if poll.wanted else EPOLL_CTL_ADD
    if epoll_ctl(poll.loop.epoll, likely, poll.fd, events, data) == 0:
        return 0
    if errno != (ENOENT if poll.wanted else EEXIST):
        return -errno
    # The file was closed and opened again, by another name, or is there still: see renew_epoll().
    likely = EPOLL_CTL_ADD if poll.wanted else EPOLL_CTL_MOD
    return 0 if epoll_ctl(poll.loop.epoll, likely, poll.fd, events, data) == 0 else -errno


cdef void on_epoll(uv_handle_t *uv_handle, int status, int events) noexcept nogil:
    """Something in the epoll is ready."""
    look_into_epoll(header_of(uv_handle).loop)


cdef bint poll_again(LoopState *state) noexcept nogil:
    """In a tick that has called all that was ready: whether something is by now, for owners that need the GIL.

    That saves an iteration of the loop where one answer brings the next question. Where it does not it costs a system call: so
    after a look that did not pay, only one tick in 16 tries it.
    """
    cdef bint asked = state.asked
    if state.epoll_handle == NULL or state.fruitless != 0:
        state.fruitless = (state.fruitless + 1) % FRUITLESS
        return False
    look_into_epoll(state)
    state.asked = asked or state.ready_count[True] > 0  # what needs the GIL is called in this tick
    state.fruitless = 0 if state.ready_count[False] > 0 else 1
    return state.ready_count[False] > 0


cdef void look_into_epoll(LoopState *state) noexcept nogil:
    cdef epoll_event came[MOST_EVENTS]
    cdef Poll *poll
    cdef int each
    cdef int count = epoll_wait(state.epoll, came, MOST_EVENTS, 0)
    for each in range(count):
        poll = find_poll(state, <int><uint32_t>came[each].data.u64)
        if poll == NULL or poll.generation != came[each].data.u64 >> 32:
            renew_epoll(state)
            return  # all that is ready comes again
        poll_came(poll, came[each].events)


cdef void poll_came(Poll *poll, uint32_t came) noexcept nogil:
    cdef int events = (C_READ if came & EPOLLIN else 0) | (C_WRITE if came & EPOLLOUT else 0)
    if came & EPOLLERR or events == 0:  # an error condition: the watchers meet it as readiness
        if came & EPOLLERR and not is_same_file(poll):
            lose(poll, EBADF)
            return
        events = C_READ | C_WRITE
    events_came(poll, events)


cdef void renew_epoll(LoopState *state) noexcept nogil:
    """A file comes up that nobody watches any more: its number was closed while another one, such as a child's, stands for it,
    so that it cannot be taken out. Go on with a new epoll, under the same number, into which ticks put what is polled."""
    cdef int renewed = epoll_create()
    if renewed < 0:
        return  # it is tried again as long as that file comes up
    replace_fd(renewed, state.epoll)
    close(renewed)
    poll_epoll(state)
    state.renewals += 1
    state.renewing = first(&state.polls)
    request_nogil_tick(state)


cdef bint renew_some(LoopState *state) noexcept nogil:
    """Put polls into the new epoll, some of them. Whether there are more."""
    cdef int left = MOST_RENEWED
    cdef Poll *poll
    while left > 0 and state.renewing != NULL:
        left -= 1
        poll = poll_at(state.renewing)
        state.renewing = after(&state.polls, state.renewing)
        update_or_lose(poll)
    return state.renewing != NULL


# ------------------------------------------------------------------------------------------------- A uv_poll_t for each fd

cdef int add_handle(Poll *poll) noexcept nogil:
    """0, or libuv's error."""
    cdef int failed
    poll.handle = new_handle(poll.loop, UV_POLL)
    if poll.handle == NULL:
        return -ENOMEM
    failed = poll.loop.uv.poll_init(poll.loop.pointer, uv_of(poll.handle), poll.fd)
    if failed < 0:
        free(poll.handle)
        return failed
    opened(poll.loop)
    poll.handle.poll = poll
    return 0


cdef void on_poll(uv_handle_t *uv_handle, int status, int events) noexcept nogil:
    cdef Poll *poll = header_of(uv_handle).poll
    if status < 0:
        # libuv has stopped the poll: for an error condition, which the watchers meet as readiness, or for a closed fd.
        if not is_same_file(poll):
            lose(poll, EBADF)
            return
        events = C_READ | C_WRITE
        poll.wanted = 0
    events_came(poll, events)
    if status < 0:
        update_or_lose(poll)


# --------------------------------------------------------------------------------------------------------- libuv's side

cdef struct Search:
    # For the active handle that has an fd.
    LibUV *uv
    int fd
    int count
    bint found
    bint only_active


cdef int find_refusal(LoopState *state, int fd) noexcept nogil:
    """0, or why `fd` cannot be watched: the system cannot poll it, or another handle on the loop does.

    What libuv polls already the system tells, and a walk over all handles confirms. What libuv is only about to poll shows by
    that walk alone, which is left out where they are many: then both get the events. Without an epoll of our own libuv would
    abort: there libuv tells, but for that of pyuv.
    """
    cdef Search search = [state.uv, fd, 0, False, HAS_EPOLL]
    cdef int epoll
    if HAS_EPOLL:
        epoll = state.uv.backend_fd(state.pointer)
        if epoll_ctl(epoll, EPOLL_CTL_ADD, fd, 0, <uint64_t>fd) == 0:
            epoll_ctl(epoll, EPOLL_CTL_DEL, fd, 0, 0)
            if state.looks_left > 0:
                state.looks_left -= 1
                return 0
        elif errno != EEXIST:
            return -errno
    elif state.sees_double_polls:
        return 0
    state.uv.walk(state.pointer, compare_fd, &search)
    state.looks_left = search.count if search.count > FEW_HANDLES else 0
    return -EEXIST if search.found else 0


cdef void compare_fd(uv_handle_t *handle, void *data) noexcept nogil:
    cdef Search *search = <Search *>data
    cdef int fd
    search.count += 1
    if (search.uv.is_active(handle) or not search.only_active) and search.uv.fileno(handle, &fd) == 0 and fd == search.fd:
        search.found = True


cdef void open_polls(LoopState *state) noexcept nogil:
    """Once, when the loop is attached: have polls looked at right before libuv polls.

    libuv runs the newest of its prepare handles first. So all that are started from now on run before this one, and may close
    what fd they like.
    """
    state.uv.prepare_start(uv_of(state.prepare), on_prepare)  # cannot fail


cdef void close_polls(LoopState *state) noexcept nogil:
    """Once, when nothing is watched any more."""
    if state.epoll_handle != NULL:
        close_handle(state.epoll_handle)
        close(state.epoll)


cdef void on_prepare(uv_handle_t *uv_handle) noexcept nogil:
    """Look at the polls that were started since libuv polled last."""
    cdef LoopState *state = header_of(uv_handle).loop
    cdef Link *link = first(&state.started)
    cdef Poll *poll
    while link != NULL:
        poll = <Poll *>(<char *>link - <size_t>&(<Poll *>NULL).started)
        unlink(link)
        if not is_same_file(poll):
            lose(poll, EBADF)
        link = first(&state.started)
