"""The watchdog's thread. It never takes the GIL and touches no Python object: so it can report who blocks the loop also while
that keeps the GIL.

The loop notes when an iteration begins and ends, and who has been called; the thread looks every half of the limit, and sleeps
while the loop does. What it sees twice is a block if it was the same call in the same iteration all the time. What it reports
at once is one line, by write(2); more, such as the stack, it requests of the reporter, which has the GIL, by a byte in a pipe.

Nobody is accused for what the machine did: the time by which this thread itself came too late is not counted (a stopped
process, a machine that was busy or asleep), nor, where the system tells it, the time for which the loop's thread waited for a
processor, or slept while another thread of the process did, which may have the GIL.

What both threads touch (the fields are in the .pxd, each with who writes and who reads it):

* `iteration` goes up when an iteration begins or ends; it is even while one runs. The loop's thread alone writes it, with
  release; the other reads it with acquire. `calls` of a caller does for a call what `iteration` does for all of them; or
  whatever number the finder of native callers names, which is never freed either.
* `calling` of LoopState is a pointer to a Caller, written and read relaxed: nothing follows from it but that this caller, which
  is never freed while the thread runs, has the loop. `callers` is a list that only grows, at its head, with release.
* `sleeping` and `iteration` are a handshake: each side writes its own and reads the other's. Release and acquire alone let both
  sides miss each other (the store may come after the load, as in Dekker's algorithm). A fence on the loop's side would cost
  every iteration; instead this thread, once it has written `sleeping`, waits GLANCE_MS before it reads `iteration`. Should
  a store take longer than that, the poll of the loop's own file ends the sleep of a loop that slept.
* `report` is under `lock`, which is held for a copy only, and never by whoever waits for the GIL.
* `native_owner` is written before `native_caller`, which is read first: with release and acquire.
* What is plain and read by others all the same, the figures of the lag, is written a word at a time: a reader may see that one
  has been counted and another not yet.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport abort
from libc.string cimport memset, strcmp
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close, read, write

from ._atomic cimport add_number, get, load, load_flag, store, store_flag
from ._starvation cimport longest_since, read_times, take_delays, waits_for_processor
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
        sigdelset(&all, SIGABRT);  /* for faulthandler: a newer glibc's abort() does not unblock it first */
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

    /* Pipes that no process inherits, and that unattributed waits for. */
    static int mqcore_make_pipe(int *ends, int first_blocks)
    {
    #ifdef __linux__
        if (pipe2(ends, O_CLOEXEC) != 0)
            return -1;
    #else
        if (pipe(ends) != 0)
            return -1;
        fcntl(ends[0], F_SETFD, FD_CLOEXEC);
        fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    #endif
        for (int each = 0; each < 2; each++) {
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
    #define mqcore_load_finder(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define mqcore_store_finder(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
    """
    int create_thread "mqcore_start_thread"(pthread_t *, void *(*)(void *) noexcept nogil, void *) noexcept nogil
    int wait_for "mqcore_poll"(int, int, int milliseconds) noexcept nogil
    bint takes_a_line "mqcore_takes_a_line"(int) noexcept nogil
    int make_pipe "mqcore_make_pipe"(int *, bint first_blocks) noexcept nogil
    void utc "mqcore_utc"(timespec *, char *, size_t) noexcept nogil
    unsigned long native_ident "mqcore_native_ident"() noexcept nogil
    int keep_output "mqcore_keep_output"() noexcept nogil
    Caller *load_caller "mqcore_load_caller"(Caller **) noexcept nogil
    void store_caller "mqcore_store_caller"(Caller **, Caller *) noexcept nogil
    find_caller load_finder "mqcore_load_finder"(find_caller *) noexcept nogil
    void store_finder "mqcore_store_finder"(find_caller *, find_caller) noexcept nogil

cdef extern from "pthread.h" nogil:
    int pthread_join(pthread_t, void **)
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil
    void *PyThreadState_Get() noexcept

cdef enum:
    NS_PER_MS = 1_000_000
    LONGEST_LINE = 1500         # shorter than what a pipe takes as one
    LONGEST_TEXT = 600
    GLANCE_MS = 1               # by then another thread sees that this one is sleeping

cdef uint64_t *LAG_BOUNDS = [
    5 * NS_PER_MS, 10 * NS_PER_MS, 25 * NS_PER_MS, 50 * NS_PER_MS, 100 * NS_PER_MS, 250 * NS_PER_MS, 500 * NS_PER_MS,
    1_000 * NS_PER_MS, 2_500 * <uint64_t>NS_PER_MS, 5_000 * <uint64_t>NS_PER_MS, 10_000 * <uint64_t>NS_PER_MS, 0]


# ------------------------------------------------------------------------------------------------------- The loop's thread

cdef void iteration_ended(WatchdogState *watchdog, uint64_t now) noexcept nogil:
    """libuv is about to poll."""
    cdef uint64_t lasted
    cdef int bucket = 0
    if watchdog.polled_at:
        lasted = now - watchdog.polled_at
        while LAG_BOUNDS[bucket] and lasted > LAG_BOUNDS[bucket]:
            bucket += 1
        watchdog.lags[bucket] += 1
        watchdog.iterations += 1
        watchdog.iterations_ns += lasted
        if lasted > watchdog.longest_ns:
            watchdog.longest_ns = lasted
    store(&watchdog.iteration, watchdog.iteration | 1)
    if load_flag(&watchdog.sleeping):
        write_byte(watchdog.wakeup[1])


cdef void iteration_began(WatchdogState *watchdog, uint64_t now) noexcept nogil:
    """libuv has polled, and has called back for what was ready. `now`: when it came to that."""
    watchdog.polled_at = now
    store(&watchdog.iteration, (watchdog.iteration | 1) + 1)
    if load_flag(&watchdog.sleeping):
        write_byte(watchdog.wakeup[1])


cdef void note_thread(void *noted) noexcept:
    """This thread runs the loop, and a tick of it: where a run of the loop begins, that is before libuv has polled."""
    cdef WatchdogState *watchdog = <WatchdogState *>noted
    if watchdog.iteration == 0 or watchdog.iteration & 1:
        iteration_began(watchdog, clock())
    if watchdog.ident != PyThread_get_thread_ident():
        watchdog.ident = PyThread_get_thread_ident()
        watchdog.python_thread = PyThreadState_Get()
        store(&watchdog.native_ident, native_ident())


cdef uint64_t lag_bound(int bucket) noexcept nogil:
    """ns; 0: none."""
    return LAG_BOUNDS[bucket]


# ---------------------------------------------------------------------------------------------------------- Start and stop

cdef void init_state(WatchdogState *watchdog) noexcept nogil:
    """Nothing is open yet."""
    watchdog.warns = True
    watchdog.times.fd = -1
    watchdog.output = -1
    cdef int each
    for each in range(2):
        watchdog.wakeup[each] = watchdog.requests[each] = watchdog.probe[each] = -1
    pthread_mutex_init(&watchdog.lock, NULL)  # cannot fail


cdef int start_thread(WatchdogState *watchdog) noexcept nogil:
    """0, or an error of the system."""
    cdef int failed
    if make_pipe(watchdog.wakeup, False) or make_pipe(watchdog.requests, True) or make_pipe(watchdog.probe, False):
        return errno
    watchdog.output = keep_output()
    failed = create_thread(&watchdog.thread, watch_loop, watchdog)
    watchdog.started = failed == 0
    return failed


cdef void stop_thread(WatchdogState *watchdog) noexcept nogil:
    """End the thread, and wait for that: it never waits for anybody."""
    store_flag(&watchdog.stopping, True)
    write_byte(watchdog.wakeup[1])
    if watchdog.started:
        watchdog.started = False
        pthread_join(watchdog.thread, NULL)


cdef void close_files(WatchdogState *watchdog) noexcept nogil:
    """Close what it has open; the thread has ended. The reporter is told by the end of its pipe, and closes that itself."""
    cdef int each
    for each in range(2):
        close_one(&watchdog.wakeup[each])
        close_one(&watchdog.probe[each])
    close_one(&watchdog.requests[1])
    close_one(&watchdog.output)
    close_one(&watchdog.times.fd)


cdef void close_one(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void write_byte(int fd) noexcept nogil:
    """A byte that does not fit tells nothing new."""
    cdef ssize_t _written = write(fd, b"!", 1)


# ------------------------------------------------------------------------------------------------------------- The thread

cdef void *watch_loop(void *started) noexcept nogil:
    cdef WatchdogState *watchdog = <WatchdogState *>started
    cdef uint64_t half = watchdog.levels[0] // 2
    cdef uint64_t planned = clock() + half
    cdef uint64_t late, iteration, calls, was_iteration, was_calls
    cdef uint64_t *counter
    cdef Caller *caller
    cdef Caller *was_caller = NULL
    cdef bint runs, same
    cdef bint call_changed = False
    cdef uint64_t now
    cdef Span of_iteration, of_call
    memset(&of_iteration, 0, sizeof(Span))
    memset(&of_call, 0, sizeof(Span))
    was_iteration = was_calls = 0
    while True:
        sleep_until(watchdog, planned)
        if load_flag(&watchdog.stopping):
            return NULL
        now = clock()
        late = now - planned if now > planned else 0
        planned = now + half
        of_iteration.late += late
        of_call.late += late
        iteration = load(&watchdog.iteration)
        caller = current(watchdog, &counter)
        calls = 0 if caller == NULL else get(counter)
        runs = iteration > 0 and not iteration & 1  # as far as the loop notes it
        same = iteration == was_iteration and caller == was_caller and calls == was_calls
        if iteration != was_iteration:
            begin_span(watchdog, &of_iteration)
        if not same:
            begin_span(watchdog, &of_call)
        if same and caller != NULL:
            check_call(watchdog, &of_call, caller, iteration, counter, calls, now)
            of_iteration.reported = max(of_iteration.reported, of_call.reported)
        elif runs and (caller == NULL or call_changed):  # else it is the first that is seen of this call, which may last
            check_iteration(watchdog, &of_iteration, iteration, now)
        call_changed = iteration == was_iteration and not same
        if same and caller == NULL and (not runs or of_iteration.reported == LEVELS and not watchdog.abort_after):
            if sleep_with_loop(watchdog, iteration):
                planned = clock() + half
        was_iteration, was_caller, was_calls = iteration, caller, calls


cdef Caller *current(WatchdogState *watchdog, uint64_t **counter) noexcept nogil:
    """Who has been called, or NULL; `counter`: what changes with each call of that."""
    cdef Caller *caller = NULL
    cdef find_caller native_caller = load_finder(&watchdog.native_caller)
    counter[0] = NULL
    if native_caller != NULL:
        caller = native_caller(watchdog.native_owner, watchdog, counter)
    if caller == NULL:
        counter[0] = NULL
        caller = load_caller(watchdog.state.calling)
    if caller != NULL and counter[0] == NULL:
        counter[0] = &caller.calls
    return caller


cdef void begin_span(WatchdogState *watchdog, Span *span) noexcept nogil:
    # The times before the clock: this thread may have to wait in between, and what the other did meanwhile is not counted.
    span.times = read_times(&watchdog.times, load(&watchdog.native_ident))
    span.since = clock()
    span.late = 0
    span.has_delays = False
    span.reported = 0


cdef uint64_t length_of(WatchdogState *watchdog, Span *span, uint64_t now) noexcept nogil:
    """For how long the loop could have gone on. A wait that is not over yet is counted by nobody: then 0."""
    cdef uint64_t lasted = counted_length(watchdog, span, now)
    if reaches_level(watchdog, span, lasted) or watchdog.abort_after and lasted >= watchdog.abort_after:
        lasted = 0 if waits_for_processor(load(&watchdog.native_ident)) else counted_length(watchdog, span, now)
    return lasted


cdef uint64_t counted_length(WatchdogState *watchdog, Span *span, uint64_t now) noexcept nogil:
    """This thread and the loop's may have waited at the same time: the longer counts."""
    cdef uint64_t thread = load(&watchdog.native_ident)
    cdef ThreadTimes times = read_times(&watchdog.times, thread)
    cdef uint64_t lasted = now - span.since if now > span.since else 0
    cdef uint64_t lost = times.waited - span.times.waited if times.waited > span.times.waited else 0
    cdef uint64_t used = lost + times.ran - span.times.ran
    if not span.has_delays:
        take_delays(&span.delays)
        span.has_delays = True
    elif lasted > used and lasted >= watchdog.levels[0] + lost:
        lost += min(lasted - used, longest_since(&span.delays, thread))
    lost = max(lost, span.late)
    return lasted - lost if lasted > lost else 0


cdef bint reaches_level(WatchdogState *watchdog, Span *span, uint64_t lasted) noexcept nogil:
    """Whether it is to be reported (once more)."""
    return span.reported < LEVELS and lasted >= watchdog.levels[span.reported]


cdef void note_levels(WatchdogState *watchdog, Span *span, uint64_t lasted) noexcept nogil:
    while reaches_level(watchdog, span, lasted):
        span.reported += 1


cdef void check_call(
        WatchdogState *watchdog, Span *span, Caller *caller, uint64_t iteration, uint64_t *counter, uint64_t calls,
        uint64_t now) noexcept nogil:
    cdef uint64_t lasted = length_of(watchdog, span, now)
    cdef bint first = span.reported == 0
    if reaches_level(watchdog, span, lasted):
        note_levels(watchdog, span, lasted)
        if first:
            add_number(&caller.blocked, 1)
        write_line(watchdog, caller, lasted, b"blocked")
        if watchdog.dump != NULL and watchdog.python_thread != NULL:
            watchdog.dump(watchdog.output, watchdog.python_thread)
        request_report(watchdog, iteration, caller, counter, calls, lasted)
    if watchdog.abort_after and lasted >= watchdog.abort_after:
        end_process(watchdog, caller, lasted)


cdef void check_iteration(WatchdogState *watchdog, Span *span, uint64_t iteration, uint64_t now) noexcept nogil:
    """Nobody that is known has kept the loop all the time. Whether it runs at all only Python knows."""
    cdef uint64_t lasted = length_of(watchdog, span, now)
    if reaches_level(watchdog, span, lasted):
        note_levels(watchdog, span, lasted)
        request_report(watchdog, iteration, NULL, NULL, 0, lasted)
    if watchdog.abort_after and lasted >= watchdog.abort_after and load(&watchdog.running_iteration) == iteration:
        end_process(watchdog, &watchdog.unattributed, lasted)


cdef void end_process(WatchdogState *watchdog, Caller *caller, uint64_t lasted) noexcept nogil:
    write_line(watchdog, caller, lasted, b"aborted")
    abort()  # faulthandler writes the stacks of all threads


cdef void request_report(
        WatchdogState *watchdog, uint64_t iteration, Caller *caller, uint64_t *counter, uint64_t calls,
        uint64_t lasted) noexcept nogil:
    pthread_mutex_lock(&watchdog.lock)
    watchdog.report.iteration = iteration
    watchdog.report.caller = caller
    watchdog.report.counter = counter
    watchdog.report.calls = calls
    watchdog.report.lasted = lasted
    pthread_mutex_unlock(&watchdog.lock)
    write_byte(watchdog.requests[1])


cdef void look_for_native(WatchdogState *watchdog, find_caller finder, void *owner) noexcept nogil:
    watchdog.native_owner = owner
    store_finder(&watchdog.native_caller, finder)


cdef void add_caller(WatchdogState *watchdog, Caller *caller) noexcept:
    """It lives at least as long as this thread. With the GIL."""
    caller.next = watchdog.callers
    store_caller(&watchdog.callers, caller)


cdef bint is_known(WatchdogState *watchdog, Caller *caller) noexcept nogil:
    """Whether there is such a caller: what was read from memory that may have been freed meanwhile can be anything."""
    cdef Caller *each = load_caller(&watchdog.callers)
    while each != NULL and each != caller:
        each = each.next
    return each != NULL


cdef bint read_safely(WatchdogState *watchdog, void *address, void *to, size_t size) noexcept nogil:
    """Read what may have been freed: the system tells, where this thread would crash."""
    return (write(watchdog.probe[1], address, size) == <ssize_t>size
            and read(watchdog.probe[0], to, size) == <ssize_t>size)


# ------------------------------------------------------------------------------------------------------- Time, and waiting

cdef uint64_t clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef void sleep_until(WatchdogState *watchdog, uint64_t planned) noexcept nogil:
    cdef uint64_t now = clock()
    while now < planned and not load_flag(&watchdog.stopping):
        wait_for(watchdog.wakeup[0], -1, <int>((planned - now + NS_PER_MS - 1) // NS_PER_MS))
        drain(watchdog.wakeup[0])  # a byte that came when this thread was awake already
        now = clock()


cdef void drain(int fd) noexcept nogil:
    cdef char drained[64]
    while read(fd, drained, sizeof(drained)) > 0:
        pass


cdef bint sleep_with_loop(WatchdogState *watchdog, uint64_t iteration) noexcept nogil:
    """The loop sleeps, or does not run: sleep, too, until it wakes up. Whether this thread slept.

    What wakes the loop up may be called back for before libuv lets it note that an iteration began: so its own file is waited
    for as well.
    """
    cdef uint64_t *counter
    store_flag(&watchdog.sleeping, True)
    wait_for(watchdog.wakeup[0], -1, GLANCE_MS)
    cdef bint slept = (load(&watchdog.iteration) == iteration and current(watchdog, &counter) == NULL
                       and not load_flag(&watchdog.stopping))
    if slept:
        wait_for(watchdog.wakeup[0], watchdog.backend if iteration & 1 else -1, -1)
    store_flag(&watchdog.sleeping, False)
    drain(watchdog.wakeup[0])
    return slept


# ----------------------------------------------------------------------------------------------------------------- Lines

cdef void write_line(WatchdogState *watchdog, Caller *caller, uint64_t lasted, const char *event) noexcept nogil:
    """One line in the format of the log, if that has warnings."""
    if event[0] == c"b" and not load_flag(&watchdog.warns):
        return
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
    if load_flag(&watchdog.as_json):
        size = snprintf(
            line, sizeof(line),
            b"{\"time\": \"%s.%03dZ\", \"level\": \"%s\", \"logger\": \"mqcore.watchdog\", \"plugin\": %s%.200s%s, "
            b"\"hook\": %s%.200s%s, \"event\": \"%s\", \"seconds\": %.3f, \"message\": \"%s\"}\n",
            date, <int>(now.tv_nsec // NS_PER_MS), level, quote(caller.plugin), or_null(caller.plugin), quote(caller.plugin),
            quote(caller.hook), or_null(caller.hook), quote(caller.hook), event, seconds, what)
    else:
        size = snprintf(line, sizeof(line), b"%s.%03dZ %s mqcore.watchdog: %s\n", date, <int>(now.tv_nsec // NS_PER_MS),
                        level, what)
    if takes_a_line(watchdog.output):  # it must not wait for who reads them
        while write(watchdog.output, line, min(size, LONGEST_LINE - 1)) < 0 and errno == EINTR:
            pass


cdef void describe(Caller *caller, double seconds, const char *event, char *text, size_t size) noexcept nogil:
    cdef const char *end = <const char *>b"; the process ends" if event[0] == c"a" else <const char *>b""
    if caller.plugin == NULL:
        snprintf(text, size, b"%s has kept the loop for %.2f s%s", who(caller.hook), seconds, end)
    elif caller.hook == NULL:
        snprintf(text, size, b"plugin %.200s has kept the loop for %.2f s in a callback of a timer or watcher%s",
                 caller.plugin, seconds, end)
    else:
        snprintf(text, size, b"plugin %.200s has kept the loop for %.2f s in %.200s%s", caller.plugin, seconds, caller.hook,
                 end)


cdef const char *who(const char *hook) noexcept nogil:
    """Whoever is no plugin."""
    if hook == NULL:
        return b"code that is no plugin's"
    return <const char *>b"a reload" if strcmp(hook, b"reload") == 0 else <const char *>b"a done callback"


cdef const char *quote(const char *name) noexcept nogil:
    return <const char *>b"" if name == NULL else <const char *>b"\""


cdef const char *or_null(const char *name) noexcept nogil:
    return <const char *>b"null" if name == NULL else name
