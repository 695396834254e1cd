"""The watchdog's thread. It never takes the GIL and touches no Python object: so it can tell who keeps the loop also while that
keeps the GIL.

The loop notes when a turn begins and ends, and who has been called; the thread looks every half of the limit, and sleeps while
the loop does. What it sees twice is a block if it was the same call in the same turn all the time. What it tells of it at once
is one line, by write(2); more, such as the stack, is for somebody who has the GIL, whom it asks by a byte in a pipe.

Nobody is accused for what the machine did: the time by which this thread itself came too late is not counted (a stopped
process, a machine that was busy or asleep), nor, where the system tells it, the time for which the loop's thread waited for a
processor.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf, sscanf
from libc.stdlib cimport abort
from libc.string cimport memset, strrchr
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close, read, write

from ._atomic cimport add_number, get, load, load_flag, store, store_flag
from ._state cimport Caller

cdef extern from *:
    """
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <time.h>
    #include <unistd.h>

    /* Signals are for the program's own threads. */
    static int mqcore_start_thread(pthread_t *thread, void *(*function)(void *), void *argument)
    {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int failed = pthread_create(thread, NULL, function, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return failed;
    }

    static int mqcore_poll(int first, int second, int milliseconds)
    {
        struct pollfd fds[2] = {{first, POLLIN, 0}, {second, POLLIN, 0}};
        return poll(fds, second < 0 ? 1 : 2, milliseconds);
    }

    static int mqcore_takes_a_line(int fd)
    {
        struct pollfd one = {fd, POLLOUT, 0};
        return poll(&one, 1, 0) == 1;
    }

    /* Pipes that no process inherits, and that nobody waits for. */
    static int mqcore_make_pipe(int *ends, int first_blocks)
    {
        if (pipe(ends) != 0)
            return -1;
        for (int each = 0; each < 2; each++) {
            fcntl(ends[each], F_SETFD, FD_CLOEXEC);
            if (each == 1 || !first_blocks)
                fcntl(ends[each], F_SETFL, O_NONBLOCK);
        }
        return 0;
    }

    static void mqcore_utc(const struct timespec *now, char *text, size_t size)
    {
        struct tm parts;
        gmtime_r(&now->tv_sec, &parts);
        strftime(text, size, "%Y-%m-%dT%H:%M:%S", &parts);
    }

    static unsigned long mqcore_native_ident(void)
    {
    #ifdef PY_HAVE_THREAD_NATIVE_ID
        return PyThread_get_thread_native_id();
    #else
        return 0;
    #endif
    }

    #define mqcore_keep_output() fcntl(2, F_DUPFD_CLOEXEC, 3)
    #define mqcore_load_caller(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define mqcore_store_caller(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
    """
    int start_thread "mqcore_start_thread"(pthread_t *, void *(*)(void *) noexcept nogil, void *) noexcept nogil
    int wait_for "mqcore_poll"(int, int, int milliseconds) noexcept nogil
    bint takes_a_line "mqcore_takes_a_line"(int) noexcept nogil
    int make_pipe "mqcore_make_pipe"(int *, bint first_blocks) noexcept nogil
    void utc "mqcore_utc"(timespec *, char *, size_t) noexcept nogil
    unsigned long native_ident "mqcore_native_ident"() noexcept nogil
    int keep_output "mqcore_keep_output"() noexcept nogil
    Caller *load_caller "mqcore_load_caller"(Caller **) noexcept nogil
    void store_caller "mqcore_store_caller"(Caller **, Caller *) noexcept nogil

cdef extern from "pthread.h" nogil:
    int pthread_join(pthread_t, void **)
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "unistd.h" nogil:
    ssize_t pread(int, void *, size_t, long)

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil
    void *PyThreadState_Get() noexcept

cdef enum:
    NS_PER_MS = 1_000_000
    LONGEST_LINE = 1500         # shorter than what a pipe takes as one
    LONGEST_TEXT = 600
    GLANCE_MS = 1               # by then another thread sees that this one is parked
    TICK_MS = 12                # by then the system has counted that a thread runs

cdef uint64_t *LAG_BOUNDS = [
    5 * NS_PER_MS, 10 * NS_PER_MS, 25 * NS_PER_MS, 50 * NS_PER_MS, 100 * NS_PER_MS, 250 * NS_PER_MS, 500 * NS_PER_MS,
    1_000 * NS_PER_MS, 2_500 * <uint64_t>NS_PER_MS, 5_000 * <uint64_t>NS_PER_MS, 10_000 * <uint64_t>NS_PER_MS, 0]


# ------------------------------------------------------------------------------------------------------- The loop's thread

cdef void turn_ended(Lookout *lookout, uint64_t now) noexcept nogil:
    """libuv is about to poll."""
    cdef uint64_t lasted
    cdef int bucket = 0
    if lookout.woke:
        lasted = now - lookout.woke
        while LAG_BOUNDS[bucket] and lasted > LAG_BOUNDS[bucket]:
            bucket += 1
        lookout.lags[bucket] += 1
        lookout.turns += 1
        lookout.turned_ns += lasted
        if lasted > lookout.longest_ns:
            lookout.longest_ns = lasted
    store(&lookout.turn, lookout.turn | 1)
    if load_flag(&lookout.parked):
        ring(lookout.wake[1])


cdef void turn_began(Lookout *lookout, uint64_t now) noexcept nogil:
    """libuv has polled, and has called back for what was ready. `now`: when it came to that."""
    lookout.woke = now
    store(&lookout.turn, (lookout.turn | 1) + 1)
    if load_flag(&lookout.parked):
        ring(lookout.wake[1])


cdef void note_thread(void *noted) noexcept:
    """This thread runs the loop."""
    cdef Lookout *lookout = <Lookout *>noted
    if lookout.ident != PyThread_get_thread_ident():
        lookout.ident = PyThread_get_thread_ident()
        lookout.python_thread = PyThreadState_Get()
        store(&lookout.native_ident, native_ident())


cdef uint64_t lag_bound(int bucket) noexcept nogil:
    """ns; 0: none."""
    return LAG_BOUNDS[bucket]


# ---------------------------------------------------------------------------------------------------------- Start and stop

cdef void init_lookout(Lookout *lookout) noexcept nogil:
    """Nothing is open yet."""
    lookout.delays = -1
    lookout.output = -1
    lookout.wake[0] = lookout.wake[1] = lookout.bell[0] = lookout.bell[1] = lookout.peek[0] = lookout.peek[1] = -1
    pthread_mutex_init(&lookout.lock, NULL)  # cannot fail


cdef int start_looking(Lookout *lookout) noexcept nogil:
    """0, or an error of the system."""
    cdef int failed
    if make_pipe(lookout.wake, False) < 0 or make_pipe(lookout.bell, True) < 0 or make_pipe(lookout.peek, False) < 0:
        return errno
    lookout.output = keep_output()
    failed = start_thread(&lookout.thread, look_out, lookout)
    lookout.started = failed == 0
    return failed


cdef void stop_looking(Lookout *lookout) noexcept nogil:
    """End the thread, and wait for that: it never waits for anybody."""
    store_flag(&lookout.stopping, True)
    ring(lookout.wake[1])
    if lookout.started:
        lookout.started = False
        pthread_join(lookout.thread, NULL)


cdef void let_go(Lookout *lookout) noexcept nogil:
    """Close what it has open; the thread has ended. Whoever waits for the bell is told by its end, and closes his."""
    cdef int each
    for each in range(2):
        close_one(&lookout.wake[each])
        close_one(&lookout.peek[each])
    close_one(&lookout.bell[1])
    close_one(&lookout.output)
    close_one(&lookout.delays)


cdef void close_one(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void ring(int fd) noexcept nogil:
    """A byte that does not fit tells nothing new."""
    cdef ssize_t _written = write(fd, b"!", 1)


# ------------------------------------------------------------------------------------------------------------- The thread

cdef void *look_out(void *started) noexcept nogil:
    cdef Lookout *lookout = <Lookout *>started
    cdef uint64_t half = lookout.levels[0] // 2
    cdef uint64_t planned = clock() + half
    cdef uint64_t late, turn, calls, was_turn, was_calls
    cdef Caller *caller
    cdef Caller *was_caller = NULL
    cdef bint runs, same
    cdef bint moved = False
    cdef uint64_t now
    cdef Span of_turn, of_call
    memset(&of_turn, 0, sizeof(Span))
    memset(&of_call, 0, sizeof(Span))
    was_turn = was_calls = 0
    while True:
        sleep_until(lookout, planned)
        if load_flag(&lookout.stopping):
            return NULL
        now = clock()
        late = now - planned if now > planned else 0
        planned = now + half
        of_turn.late += late
        of_call.late += late
        turn = load(&lookout.turn)
        caller = current(lookout)
        calls = 0 if caller == NULL else get(&caller.calls)
        runs = turn > 0 and not turn & 1  # as far as the loop notes it
        same = turn == was_turn and caller == was_caller and calls == was_calls
        if turn != was_turn:
            begin_span(lookout, &of_turn, now)
        if not same:
            begin_span(lookout, &of_call, now)
        if same and caller != NULL:
            look_at_call(lookout, &of_call, caller, turn, calls, now)
            of_turn.told = max(of_turn.told, of_call.told)
        elif runs and (caller == NULL or moved):  # else it is the first that is seen of this call, which may last
            look_at_turn(lookout, &of_turn, turn, now)
        moved = turn == was_turn and not same
        if same and caller == NULL and (not runs or of_turn.told == LEVELS and not lookout.abort_after):
            if wait_for_turn(lookout, turn):
                planned = clock() + half
        was_turn, was_caller, was_calls = turn, caller, calls


cdef Caller *current(Lookout *lookout) noexcept nogil:
    cdef Caller *caller = NULL
    if lookout.native_caller != NULL:
        caller = lookout.native_caller(lookout.native_owner, lookout)
    return load_caller(lookout.state.calling) if caller == NULL else caller


cdef void begin_span(Lookout *lookout, Span *span, uint64_t now) noexcept nogil:
    span.since = now
    span.late = 0
    span.waited = waited_for_processor(lookout)
    span.told = 0


cdef uint64_t length_of(Lookout *lookout, Span *span, uint64_t now) noexcept nogil:
    """For how long the loop could have gone on. Both threads may have waited at the same time: so the longer counts."""
    cdef uint64_t lasted = now - span.since
    cdef uint64_t lost = max(waited_for_processor(lookout) - span.waited, span.late)
    return lasted - lost if lasted > lost else 0


cdef bint reaches_level(Lookout *lookout, Span *span, uint64_t lasted) noexcept nogil:
    """Whether it is to be told of (once more)."""
    cdef bint reached = False
    if span.told == LEVELS or lasted < lookout.levels[span.told] or waits_for_processor(lookout):
        return False
    while span.told < LEVELS and lasted >= lookout.levels[span.told]:
        span.told += 1
        reached = True
    return reached


cdef void look_at_call(
        Lookout *lookout, Span *span, Caller *caller, uint64_t turn, uint64_t calls, uint64_t now) noexcept nogil:
    cdef uint64_t lasted = length_of(lookout, span, now)
    cdef bint first = span.told == 0
    if reaches_level(lookout, span, lasted):
        if first:
            add_number(&caller.blocked, 1)
        write_line(lookout, caller, lasted, b"blocked")
        if lookout.dump != NULL and lookout.python_thread != NULL:
            lookout.dump(lookout.output, lookout.python_thread)
        ask(lookout, turn, caller, calls, lasted)
    if lookout.abort_after and lasted >= lookout.abort_after:
        end_process(lookout, caller, lasted)


cdef void look_at_turn(Lookout *lookout, Span *span, uint64_t turn, uint64_t now) noexcept nogil:
    """Nobody that is known has kept the loop all the time. Whether it runs at all only Python knows."""
    cdef uint64_t lasted = length_of(lookout, span, now)
    if reaches_level(lookout, span, lasted):
        ask(lookout, turn, NULL, 0, lasted)
    if lookout.abort_after and lasted >= lookout.abort_after and load(&lookout.running_turn) == turn:
        end_process(lookout, &lookout.nobody, lasted)


cdef void end_process(Lookout *lookout, Caller *caller, uint64_t lasted) noexcept nogil:
    write_line(lookout, caller, lasted, b"aborted")
    abort()  # faulthandler writes the stacks of all threads


cdef void ask(Lookout *lookout, uint64_t turn, Caller *caller, uint64_t calls, uint64_t lasted) noexcept nogil:
    pthread_mutex_lock(&lookout.lock)
    lookout.asked.turn = turn
    lookout.asked.caller = caller
    lookout.asked.calls = calls
    lookout.asked.lasted = lasted
    pthread_mutex_unlock(&lookout.lock)
    ring(lookout.bell[1])


cdef void add_caller(Lookout *lookout, Caller *caller) noexcept:
    """It lives at least as long as this thread. With the GIL."""
    caller.next = lookout.callers
    store_caller(&lookout.callers, caller)


cdef bint is_known(Lookout *lookout, Caller *caller) noexcept nogil:
    """Whether there is such a caller: what was read from memory that may have been freed meanwhile can be anything."""
    cdef Caller *each = load_caller(&lookout.callers)
    while each != NULL and each != caller:
        each = each.next
    return each != NULL


cdef bint read_safely(Lookout *lookout, void *address, void *to, size_t size) noexcept nogil:
    """Read what may have been freed: the system tells, where this thread would crash."""
    return (write(lookout.peek[1], address, size) == <ssize_t>size
            and read(lookout.peek[0], to, size) == <ssize_t>size)


# ------------------------------------------------------------------------------------------------------- Time, and waiting

cdef uint64_t clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef void sleep_until(Lookout *lookout, uint64_t planned) noexcept nogil:
    cdef uint64_t now = clock()
    while now < planned and not load_flag(&lookout.stopping):
        wait_for(lookout.wake[0], -1, <int>((planned - now + NS_PER_MS - 1) // NS_PER_MS))
        now = clock()


cdef bint wait_for_turn(Lookout *lookout, uint64_t turn) noexcept nogil:
    """The loop sleeps, or does not run: sleep, too, until it wakes up. Whether it slept.

    What wakes it up may be called back for before libuv lets it note that a turn began: so its own file is waited for as well.
    """
    cdef char drained[64]
    store_flag(&lookout.parked, True)
    wait_for(lookout.wake[0], -1, GLANCE_MS)
    cdef bint slept = load(&lookout.turn) == turn and current(lookout) == NULL and not load_flag(&lookout.stopping)
    if slept:
        wait_for(lookout.wake[0], lookout.backend if turn & 1 else -1, -1)
    store_flag(&lookout.parked, False)
    while read(lookout.wake[0], drained, sizeof(drained)) > 0:
        pass
    return slept


cdef uint64_t waited_for_processor(Lookout *lookout) noexcept nogil:
    """How long the loop's thread was ready to run and did not, ns; 0 where the system does not tell."""
    cdef unsigned long long ran = 0
    cdef unsigned long long waited = 0
    read_times(lookout, &ran, &waited)
    return waited


cdef bint waits_for_processor(Lookout *lookout) noexcept nogil:
    """Whether the loop's thread is ready to run and does not, just now: for how long will be counted when it runs again."""
    cdef char text[512]
    cdef char *state
    cdef unsigned long long before = 0
    cdef unsigned long long ran = 0
    cdef unsigned long long waited = 0
    snprintf(text, sizeof(text), b"/proc/self/task/%llu/stat", <unsigned long long>load(&lookout.native_ident))
    cdef int fd = open(text, O_RDONLY | O_CLOEXEC)
    cdef ssize_t size = read(fd, text, sizeof(text) - 1) if fd >= 0 else -1
    close_one(&fd)
    if size <= 0:
        return False
    text[size] = 0
    state = strrchr(text, c")")  # its name may have anything in it
    if state == NULL or state[1] != c" " or state[2] != c"R" or not read_times(lookout, &before, &waited):
        return False
    wait_for(lookout.peek[0], -1, TICK_MS)
    return read_times(lookout, &ran, &waited) and ran == before


cdef bint read_times(Lookout *lookout, unsigned long long *ran, unsigned long long *waited) noexcept nogil:
    """For how long the loop's thread has run, and has waited for a processor, ns. Whether the system tells."""
    cdef char text[128]
    cdef uint64_t thread = load(&lookout.native_ident)
    cdef ssize_t size
    if thread != lookout.delays_of:
        close_one(&lookout.delays)
        snprintf(text, sizeof(text), b"/proc/self/task/%llu/schedstat", <unsigned long long>thread)
        lookout.delays = open(text, O_RDONLY | O_CLOEXEC)
        lookout.delays_of = thread
    size = pread(lookout.delays, text, sizeof(text) - 1, 0) if lookout.delays >= 0 else -1
    if size <= 0:
        return False
    text[size] = 0
    return sscanf(text, b"%llu %llu", ran, waited) == 2


# ----------------------------------------------------------------------------------------------------------------- Lines

cdef void write_line(Lookout *lookout, Caller *caller, uint64_t lasted, const char *event) noexcept nogil:
    """One line in the format of the log."""
    cdef char line[LONGEST_LINE]
    cdef char what[LONGEST_TEXT]
    cdef char date[32]
    cdef timespec now
    cdef int size
    cdef double seconds = lasted / 1e9
    cdef const char *level = <const char *>b"CRITICAL" if event[0] == c"a" else <const char *>b"WARNING"
    clock_gettime(CLOCK_REALTIME, &now)
    utc(&now, date, sizeof(date))
    describe(caller, seconds, event, what, sizeof(what))
    if lookout.as_json:
        size = snprintf(
            line, sizeof(line),
            b"{\"time\": \"%s.%03dZ\", \"level\": \"%s\", \"logger\": \"mqcore.watchdog\", \"plugin\": %s%.200s%s, "
            b"\"hook\": %s%.200s%s, \"event\": \"%s\", \"seconds\": %.3f, \"message\": \"%s\"}\n",
            date, <int>(now.tv_nsec // NS_PER_MS), level, quote(caller.plugin), or_null(caller.plugin), quote(caller.plugin),
            quote(caller.hook), or_null(caller.hook), quote(caller.hook), event, seconds, what)
    else:
        size = snprintf(line, sizeof(line), b"%s.%03dZ %s mqcore.watchdog: %s\n", date, <int>(now.tv_nsec // NS_PER_MS),
                        level, what)
    if takes_a_line(lookout.output):  # it must not wait for who reads them
        while write(lookout.output, line, min(size, LONGEST_LINE - 1)) < 0 and errno == EINTR:
            pass


cdef void describe(Caller *caller, double seconds, const char *event, char *text, size_t size) noexcept nogil:
    cdef const char *end = <const char *>b"; the process ends" if event[0] == c"a" else <const char *>b""
    if caller.plugin == NULL:
        snprintf(text, size, b"%s has kept the loop for %.2f s%s",
                 <const char *>b"code that is no plugin's" if caller.hook == NULL else <const char *>b"a done callback",
                 seconds, end)
    elif caller.hook == NULL:
        snprintf(text, size, b"plugin %.200s has kept the loop for %.2f s in a callback of a timer or watcher%s",
                 caller.plugin, seconds, end)
    else:
        snprintf(text, size, b"plugin %.200s has kept the loop for %.2f s in %.200s%s", caller.plugin, seconds, caller.hook,
                 end)


cdef const char *quote(const char *name) noexcept nogil:
    return <const char *>b"" if name == NULL else <const char *>b"\""


cdef const char *or_null(const char *name) noexcept nogil:
    return <const char *>b"null" if name == NULL else name
