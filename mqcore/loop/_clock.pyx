"""A virtual clock, for tests of plugins: one loop whose timers become due when the test says so.

All of mqcore asks for the time, and starts its timers, by the table of libuv's functions that the reactor got when it attached
to the loop. A loop under the virtual clock has a table of its own, in which `hrtime`, `now` and what is about timers are the
functions below: nothing else in mqcore knows of it, and other loops stay as they are. Sockets, and wake-ups by other threads,
are libuv's also here.

The clock stands still until `move_to`; `ring` calls the timers that are due by then, in the order of their times, and those of
equal times in the order in which they were started, as libuv does. One loop at a time has the clock, and all of this is for its
thread.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from ._libuv cimport (
    UV_CHECK, UV_IDLE, UV_POLL, Library, LibUV, library_of, pointer_of, uv_callback, uv_handle_t, uv_loop_t)
from ._lifetime cimport WatchHandle
from ._list cimport Link, List, after, first
from ._reactor cimport Reactor
from ._state cimport NS_PER_MS, LoopState, Poll, Watch, header_of
from ._wheel cimport PLACES, Node, node_of

from ..errors import MqError
from ._libuv import Library as new_library  # no-cython-lint
from ._libuv import substitute  # no-cython-lint

cdef enum:
    MOST_ALARMS = 1024        # two for each dispatcher; those beyond are libuv's, and never ring in virtual time
    UV_NAMED_PIPE = 7         # uv_handle_type, as in _libuv.pxd
    UV_PROCESS = 10
    UV_TCP = 12
    UV_UDP = 15

START = 1_000 * 1_000_000_000
"""What the clock begins with, in ns: anything but 0, which stands for no time."""

cdef struct Alarm:
    # A uv_timer_t, from timer_init to close.
    uv_handle_t *handle
    uv_callback callback
    uint64_t due              # in ms
    uint64_t order            # of being started; 0: it is stopped

cdef struct TypedHandle:
    # How each uv_handle_t begins, since libuv 1.0; not every owner has uv_handle_get_type().
    void *data
    uv_loop_t *loop
    int kind

cdef struct Survey:
    # Of the handles of the loop.
    int ready                 # idle handles that are active: there is something to do
    int outside               # what the world outside may do something to: sockets, pipes, processes

cdef Alarm alarms[MOST_ALARMS]
cdef int alarm_count = 0
cdef uint64_t started = 0
cdef uint64_t clock_ns = 0
cdef LibUV real               # the owner's
cdef object clock_loop = None
cdef Library clock_library = None
cdef uv_loop_t *clock_pointer = NULL
cdef uv_handle_t *check = NULL
cdef bint leaves_ready = False  # the loop's last turn left something to do


# ------------------------------------------------------------------------------------------------- In the place of libuv's

cdef uint64_t virtual_hrtime() noexcept nogil:
    return clock_ns


cdef uint64_t virtual_now(const uv_loop_t *loop) noexcept nogil:
    return clock_ns // NS_PER_MS


cdef Alarm *alarm_of(const uv_handle_t *handle) noexcept nogil:
    cdef int place
    for place in range(alarm_count):
        if alarms[place].handle == handle:
            return &alarms[place]
    return NULL


cdef int virtual_timer_init(uv_loop_t *loop, uv_handle_t *handle) noexcept nogil:
    global alarm_count
    if alarm_count < MOST_ALARMS:
        alarms[alarm_count].handle = handle
        alarms[alarm_count].order = 0
        alarm_count += 1
    return real.timer_init(loop, handle)


cdef int virtual_timer_start(uv_handle_t *handle, uv_callback callback, uint64_t timeout, uint64_t repeat) noexcept nogil:
    global started
    cdef Alarm *alarm = alarm_of(handle)
    if alarm == NULL:
        return real.timer_start(handle, callback, timeout, repeat)
    started += 1
    alarm.callback = callback
    alarm.due = clock_ns // NS_PER_MS + timeout
    alarm.order = started
    return 0


cdef int virtual_timer_stop(uv_handle_t *handle) noexcept nogil:
    cdef Alarm *alarm = alarm_of(handle)
    if alarm == NULL:
        return real.timer_stop(handle)
    alarm.order = 0
    return 0


cdef void virtual_close(uv_handle_t *handle, uv_callback callback) noexcept nogil:
    global alarm_count
    cdef Alarm *alarm = alarm_of(handle)
    if alarm != NULL:
        alarm_count -= 1
        memmove(alarm, alarm + 1, <size_t>(<char *>&alarms[alarm_count] - <char *>alarm))
    real.close(handle, callback)


# ------------------------------------------------------------------------------------------------------------ For the test

def install(loop):
    """Give the virtual clock to `loop`, a uvloop.Loop or pyuv.Loop: to what attaches to it from now on, until `uninstall`.

    Raises MqError when a loop has it already, or this one is closed, TypeError for any other loop.
    """
    global real, clock_loop, clock_library, clock_pointer, clock_ns, started, check
    if clock_loop is not None:
        raise MqError("another loop has the virtual clock; close the clock of that one first: one loop at a time can have it")
    cdef Library owner = library_of(loop)
    cdef uv_loop_t *pointer = pointer_of(loop)
    cdef Library library = new_library(owner.owner, owner.path)
    check = <uv_handle_t *>calloc(1, owner.table.handle_size(UV_CHECK))
    if check == NULL:
        raise MemoryError()
    real = owner.table
    real.check_init(pointer, check)  # these cannot fail
    real.check_start(check, on_check)
    real.unref(check)
    library.table.hrtime = virtual_hrtime
    library.table.now = virtual_now
    library.table.timer_init = virtual_timer_init
    library.table.timer_start = virtual_timer_start
    library.table.timer_stop = virtual_timer_stop
    library.table.close = virtual_close
    clock_loop, clock_library, clock_pointer = loop, library, pointer
    clock_ns = START
    started = 0
    substitute(loop, library)


def uninstall():
    """The loop is as others again. Nothing may be attached to it any more: raises MqError where something is. If no loop has
    the clock, nothing happens."""
    global clock_loop, clock_pointer, check
    if clock_loop is None:
        return
    if alarm_count:
        raise MqError("a dispatcher is still open on the loop with the virtual clock; close it first")
    substitute(clock_loop, None)
    clock_loop = None  # the table stays: what is closed on that loop has its last callbacks in the loop's next turn
    clock_pointer = NULL
    real.close(check, free_check)
    check = NULL


cdef void free_check(uv_handle_t *handle) noexcept nogil:
    free(handle)


def is_installed():
    """Whether a loop has it."""
    return clock_loop is not None


def now():
    """The time, in ns; `START` when the clock was installed."""
    return clock_ns


def move_to(uint64_t ns):
    """Let it be so late. Nothing is called before `ring`. Raises ValueError for a time that is over."""
    global clock_ns
    if ns < clock_ns:
        raise ValueError(f"the clock is at {clock_ns} ns, and does not go back to {ns}")
    clock_ns = ns


def next_alarm():
    """When something of mqcore's has to be called, in ns, or None: at the latest then. It may turn out to be nothing."""
    cdef Alarm *alarm = earliest()
    return None if alarm == NULL else max(alarm.due * NS_PER_MS, clock_ns)


def ring():
    """Call what is due by now. Returns whether there was something; it is done in the loop's next turns."""
    cdef Alarm *alarm = earliest()
    cdef bint any = False
    cdef uint64_t last = started  # what is started meanwhile waits
    while alarm != NULL and alarm.due <= clock_ns // NS_PER_MS and alarm.order <= last:
        any = True
        alarm.order = 0
        alarm.callback(alarm.handle)
        alarm = earliest()
    return any


cdef Alarm *earliest() noexcept nogil:
    cdef Alarm *found = NULL
    cdef int place
    for place in range(alarm_count):
        if alarms[place].order and (found == NULL or comes_before(&alarms[place], found)):
            found = &alarms[place]
    return found


cdef bint comes_before(Alarm *one, Alarm *other) noexcept nogil:
    return one.due < other.due or one.due == other.due and one.order < other.order


cdef void look_at(uv_handle_t *handle, void *survey) noexcept nogil:
    cdef int kind = (<TypedHandle *>handle).kind
    if not real.is_active(handle):
        return
    if kind == UV_IDLE:
        (<Survey *>survey).ready += 1
    elif kind == UV_TCP or kind == UV_UDP or kind == UV_NAMED_PIPE or kind == UV_POLL or kind == UV_PROCESS:
        (<Survey *>survey).outside += 1


cdef Survey survey() noexcept nogil:
    cdef Survey found
    found.ready = found.outside = 0
    if clock_pointer != NULL:
        real.walk(clock_pointer, look_at, &found)
    return found


cdef void on_check(uv_handle_t *handle) noexcept nogil:
    """Late in a turn: uvloop's idle handle says whether callbacks wait, but no more when the loop has stopped."""
    global leaves_ready
    leaves_ready = survey().ready > 0


def is_ready():
    """Whether the loop's last turn left something to do."""
    return leaves_ready or survey().ready > 0


def outside():
    """How many of the loop's handles wait for the world outside."""
    return survey().outside


def backend_fd():
    """What is readable when the world outside has done something; -1 when no loop has the clock."""
    return -1 if clock_pointer == NULL else real.backend_fd(clock_pointer)


def running():
    """The timers and watchers that run on the loop: a list of (lifetime, callback, ns at which it is due or None, fd or None).
    Of native plugins' the first two are None."""
    cdef list found = []
    cdef LoopState *state
    cdef int place
    for place in range(alarm_count):
        state = header_of(alarms[place].handle).loop
        if state.alarm == header_of(alarms[place].handle):  # and not the other timer, that of its deadlines
            add_timers(<Reactor>state.owner, found)
            add_watchers(&state.polls, found)
            add_watchers(&state.lost, found)
    return found


cdef int add_timers(Reactor reactor, list found) except -1:
    cdef Link *link
    cdef Node *node
    cdef int place
    for place in range(PLACES):
        link = first(&reactor.wheel.places[place])
        while link != NULL:
            node = node_of(link)
            add_one(node.owner, node.is_nogil, node.tick * NS_PER_MS, None, found)
            link = after(&reactor.wheel.places[place], link)
    return 0


cdef int add_watchers(List *polls, list found) except -1:
    cdef Link *link = first(polls)
    cdef Link *each
    cdef Poll *poll
    cdef Watch *watch
    while link != NULL:
        poll = <Poll *>(<char *>link - <size_t>&(<Poll *>NULL).link)
        each = first(&poll.watches)
        while each != NULL:
            watch = <Watch *>(<char *>each - <size_t>&(<Watch *>NULL).link)
            add_one(watch.owner, watch.is_nogil, None, poll.fd, found)
            each = after(&poll.watches, each)
        link = after(polls, link)
    return 0


cdef int add_one(PyObject *owner, bint is_nogil, object due, object fd, list found) except -1:
    if is_nogil:
        found.append((None, None, due, fd))
    else:
        found.append(((<WatchHandle>owner).lifetime, (<WatchHandle>owner).callback, due, fd))
    return 0
