"""The watchdog of a loop, as Python has it: it starts and ends the thread that looks, notes the loop's turns for it by two of
libuv's handles, and has the figures. What there is to be told that needs the GIL is told by a thread of Python's: see _teller.
"""

import atexit
import json
import os
import threading

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from posix.unistd cimport read

from ._atomic cimport add_number, get, load, load_flag, store
from ._dl cimport RTLD_DEFAULT, dlsym
from ._libuv cimport UV_CHECK, UV_PREPARE, uv_handle_t
from ._lookout cimport (
    LAG_BUCKETS, LEVELS, Asked, Lookout, add_caller, close_one, dump_function, init_lookout, lag_bound, let_go, note_thread,
    start_looking, stop_looking, turn_began, turn_ended)
from ._reactor cimport Reactor
from ._seal cimport seal
from ._state cimport NS_PER_MS, Caller, LoopState, close_handle, header_of, new_handle, opened, set_calling, uv_of

from ..stats import Blocked, Lag
from ._teller import tell

cdef extern from "pthread.h" nogil:
    int pthread_mutex_lock(void *)
    int pthread_mutex_unlock(void *)

cdef extern from "Python.h":
    int PySet_Discard(set, object) noexcept  # of what is hashed by its address: cannot fail

cdef tuple TOLD_AFTER = (1, 10, 60)  # s, once more, if that is longer than the limit

cdef set live = set()  # Guards whose threads run


# Of a child process the handles cannot be closed: there, a loop that runs finds no lookout any more.

cdef void on_prepare(uv_handle_t *uv_handle) noexcept nogil:
    cdef LoopState *state = header_of(uv_handle).loop
    if state.lookout != NULL:
        set_calling(state, NULL)
        turn_ended(<Lookout *>state.lookout, state.uv.hrtime())


cdef void on_check(uv_handle_t *uv_handle) noexcept nogil:
    cdef LoopState *state = header_of(uv_handle).loop
    if state.lookout != NULL:
        turn_began(<Lookout *>state.lookout, state.uv.now(state.pointer) * NS_PER_MS)


@cython.final
@cython.no_gc_clear
cdef class Guard:

    def __cinit__(self):
        init_lookout(&self.lookout)

    cdef int start(self, object order) except -1:
        """`order`: a Watchdog of mqcore.watchdog."""
        cdef Lookout *lookout = &self.lookout
        cdef int level = 1
        cdef uint64_t ns
        lookout.levels[0] = <uint64_t>(order.limit * 1e9)
        for seconds in TOLD_AFTER:
            ns = seconds * 1_000_000_000
            if ns > lookout.levels[0]:
                lookout.levels[level] = ns
                level += 1
        while level < LEVELS:
            lookout.levels[level] = <uint64_t>-1
            level += 1
        lookout.abort_after = <uint64_t>(order.abort * 1e9)
        lookout.as_json = order.json
        if order.unsafe_stack:
            lookout.dump = find_dump()
        lookout.state = &self.reactor.state
        lookout.backend = self.reactor.state.uv.backend_fd(self.reactor.state.pointer)
        note_thread(lookout)
        failed = start_looking(lookout)
        if failed:
            self.end_thread()
            raise OSError(failed, f"the watchdog cannot start its thread: {os.strerror(failed)}")
        try:
            teller = threading.Thread(target=tell, args=(self,), name="mqcore watchdog", daemon=True)
            teller.start()
            self.teller = teller
            live.add(self)
            self.open_handles()
        except BaseException:
            self.end_thread()
            raise
        return 0

    cdef int open_handles(self) except -1:
        self.prepare = new_handle(&self.reactor.state, UV_PREPARE)
        self.check = new_handle(&self.reactor.state, UV_CHECK)
        if self.prepare == NULL or self.check == NULL:
            free(self.prepare)
            free(self.check)
            self.prepare = self.check = NULL
            raise MemoryError()
        self.reactor.state.lookout = &self.lookout
        uv = self.reactor.state.uv
        uv.prepare_init(self.reactor.state.pointer, uv_of(self.prepare))  # none of these can fail
        uv.check_init(self.reactor.state.pointer, uv_of(self.check))
        opened(&self.reactor.state)
        opened(&self.reactor.state)
        uv.prepare_start(uv_of(self.prepare), on_prepare)
        uv.check_start(uv_of(self.check), on_check)
        uv.unref(uv_of(self.prepare))
        uv.unref(uv_of(self.check))
        add_caller(&self.lookout, &self.lookout.nobody)
        return 0

    cdef void end_thread(self) noexcept:
        """More than once is fine."""
        if self.reactor.forked:
            self.lookout.started = False  # it is the parent's
        with nogil:
            stop_looking(&self.lookout)
        let_go(&self.lookout)
        if self.teller is None or self.reactor.forked:
            close_one(&self.lookout.bell[0])
        PySet_Discard(live, self)

    cdef void stop(self) noexcept:
        """The dispatcher closes: on its thread."""
        self.end_thread()
        self.reactor.state.lookout = NULL
        if self.prepare != NULL and not self.reactor.forked:
            close_handle(self.prepare)
            close_handle(self.check)
        self.prepare = self.check = NULL

    # ---------------------------------------------------------------------------------------------------- for the teller

    @property
    def ident(self):
        """The loop's thread."""
        return self.lookout.ident

    @property
    def loop(self):
        return self.reactor.loop

    def wait(self):
        """Wait until there is something to be told; False: never more."""
        cdef char drained[64]
        cdef ssize_t size
        with nogil:
            size = read(self.lookout.bell[0], drained, sizeof(drained))
            while size < 0 and errno == EINTR:  # a signal that this thread was chosen for
                size = read(self.lookout.bell[0], drained, sizeof(drained))
        if size <= 0:
            close_one(&self.lookout.bell[0])
        return size > 0

    def asked(self):
        """What is to be told: whether it still goes on, whether it is known who does it, plugin and hook, the seconds, and the
        turn. None when the dispatcher was closed meanwhile."""
        cdef Lookout *lookout = &self.lookout
        if load_flag(&lookout.stopping):
            return None
        cdef Asked asked
        pthread_mutex_lock(&lookout.lock)
        asked = lookout.asked
        pthread_mutex_unlock(&lookout.lock)
        cdef bint same = load(&lookout.turn) == asked.turn
        if asked.caller == NULL:
            return same, False, None, None, asked.lasted / 1e9, asked.turn
        same = same and get(&asked.caller.calls) == asked.calls
        return same, True, name_of(asked.caller.plugin), name_of(asked.caller.hook), asked.lasted / 1e9, asked.turn

    def confirm(self, uint64_t turn, bint first):
        """The loop runs, and what keeps it is no plugin's. `first`: that was not told yet."""
        if first:
            add_number(&self.lookout.nobody.blocked, 1)
        store(&self.lookout.running_turn, turn)

    def lag(self):
        """The figures."""
        cdef Lookout *lookout = &self.lookout
        cdef Caller *caller = lookout.callers
        cdef int bucket
        cdef list blocked = []
        cdef list lags = []
        while caller != NULL:
            if get(&caller.blocked):
                blocked.append(Blocked(name_of(caller.plugin), name_of(caller.hook), get(&caller.blocked)))
            caller = caller.next
        for bucket in range(LAG_BUCKETS):
            lags.append((lag_bound(bucket) / 1e9 or float("inf"), lookout.lags[bucket]))
        blocked.reverse()
        return Lag(lookout.turns, lookout.turned_ns / 1e9, lookout.longest_ns / 1e9, tuple(lags), tuple(blocked))


cdef object name_of(const char *text):
    """A name as it was before it became text of a line."""
    return None if text == NULL else json.loads(b'"' + text + b'"')


cdef dump_function find_dump() noexcept:
    """CPython's function that writes a stack; NULL where it exports none."""
    cdef void *found = dlsym(RTLD_DEFAULT, b"PyUnstable_DumpTraceback")
    if found == NULL:
        found = dlsym(RTLD_DEFAULT, b"_Py_DumpTraceback")
    return <dump_function>found


def can_dump():
    """Whether there is one."""
    return find_dump() != NULL


cdef Guard new_guard(Reactor reactor):
    cdef Guard guard = Guard.__new__(Guard)
    guard.reactor = reactor
    return guard


def end_threads():
    """The interpreter exits: a thread that looks at what it has freed would crash."""
    for guard in tuple(live):
        (<Guard>guard).end_thread()


atexit.register(end_threads)
seal(Guard)
