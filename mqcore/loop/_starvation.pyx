"""Starvation: how long threads of this process were ready to run and did not, because others had the processors.

It is read from /proc, which Linux has; elsewhere no thread ever waited, as far as this module can tell. Linux counts a wait
when it is over, so there are two questions: how long threads have waited (`read_times`, `Delays`), and whether one waits now.

Everything here is for a thread that has no GIL.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf, sscanf
from libc.stdlib cimport strtoull
from libc.string cimport strrchr
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.time cimport nanosleep, timespec
from posix.unistd cimport close, read

cdef extern from "dirent.h" nogil:
    ctypedef struct DIR:
        pass
    struct dirent:
        char d_name[256]
    DIR *opendir(const char *)
    dirent *readdir(DIR *)
    int closedir(DIR *)

cdef extern from "unistd.h" nogil:
    ssize_t pread(int, void *, size_t, long)

cdef enum:
    TICK_NS = 12_000_000        # by then the system has counted that a thread runs


cdef ThreadTimes read_times(TimesFile *file, uint64_t thread) noexcept nogil:
    """The times of `thread`; zeros where the system does not tell. `file` is kept open for the next time."""
    cdef char name[64]
    if thread != file.thread:
        if file.fd >= 0:
            close(file.fd)
        snprintf(name, sizeof(name), b"/proc/self/task/%llu/schedstat", <unsigned long long>thread)
        file.fd = open(name, O_RDONLY | O_CLOEXEC)
        file.thread = thread
    return times_in(file.fd)


cdef ThreadTimes times_in(int fd) noexcept nogil:
    cdef char text[128]
    cdef ThreadTimes times
    cdef ssize_t size = pread(fd, text, sizeof(text) - 1, 0) if fd >= 0 else -1
    times.ran = times.waited = 0
    if size > 0:
        text[size] = 0
        if sscanf(text, b"%llu %llu", &times.ran, &times.waited) != 2:
            times.ran = times.waited = 0
    return times


cdef ThreadTimes times_of(uint64_t thread) noexcept nogil:
    cdef TimesFile file
    file.fd = -1
    file.thread = 0
    cdef ThreadTimes times = read_times(&file, thread)
    if file.fd >= 0:
        close(file.fd)
    return times


cdef void take_delays(Delays *delays) noexcept nogil:
    """How long each thread has waited until now."""
    cdef int each
    delays.count = list_threads(delays.thread)
    for each in range(delays.count):
        delays.waited[each] = times_of(delays.thread[each]).waited


cdef int list_threads(uint64_t *threads) noexcept nogil:
    """How many there are. Of more than MOST_THREADS, some are left out."""
    cdef DIR *tasks = opendir(b"/proc/self/task")
    cdef int count = 0
    cdef uint64_t thread
    if tasks == NULL:
        return 0
    thread = next_thread(tasks)
    while thread and count < MOST_THREADS:
        threads[count] = thread
        count += 1
        thread = next_thread(tasks)
    closedir(tasks)
    return count


cdef uint64_t next_thread(DIR *tasks) noexcept nogil:
    """0: that was the last."""
    cdef dirent *entry = readdir(tasks)
    while entry != NULL and entry.d_name[0] == c".":
        entry = readdir(tasks)
    return 0 if entry == NULL else strtoull(entry.d_name, NULL, 10)


cdef uint64_t longest_since(Delays *before, uint64_t but_for) noexcept nogil:
    """By how much the thread has waited that waited most since then, ns; `but_for` is left out."""
    cdef unsigned long long waited
    cdef uint64_t longest = 0
    cdef int each
    for each in range(before.count):
        if before.thread[each] != but_for:
            waited = times_of(before.thread[each]).waited
            if waited > before.waited[each] + longest:
                longest = waited - before.waited[each]
    return longest


cdef bint waits_for_processor(uint64_t thread) noexcept nogil:
    """Whether `thread` is ready to run and does not, just now; or it sleeps, and another one does: that may have what it waits
    for, such as the GIL. For how long will be counted when it runs again."""
    cdef uint64_t[MOST_THREADS] threads
    cdef unsigned long long[MOST_THREADS] ran
    cdef unsigned long long before = times_of(thread).ran
    cdef timespec tick
    cdef int each
    cdef int runnable = 0
    cdef bint waits = False
    for each in range(list_threads(threads)):
        if is_runnable(threads[each]):
            threads[runnable] = threads[each]
            ran[runnable] = times_of(threads[each]).ran
            runnable += 1
    tick.tv_sec = 0
    tick.tv_nsec = TICK_NS
    nanosleep(&tick, NULL)
    for each in range(runnable):
        if times_of(threads[each]).ran == ran[each]:
            waits = True
    # Who waits for the GIL wakes up every few milliseconds, for some microseconds.
    return waits and times_of(thread).ran - before < TICK_NS // 2


cdef bint is_runnable(uint64_t thread) noexcept nogil:
    cdef char text[512]
    cdef char *state
    snprintf(text, sizeof(text), b"/proc/self/task/%llu/stat", <unsigned long long>thread)
    cdef int fd = open(text, O_RDONLY | O_CLOEXEC)
    cdef ssize_t size = read(fd, text, sizeof(text) - 1) if fd >= 0 else -1
    if fd >= 0:
        close(fd)
    if size <= 0:
        return False
    text[size] = 0
    state = strrchr(text, c")")  # its name may have anything in it
    return state != NULL and state[1] == c" " and state[2] == c"R"
