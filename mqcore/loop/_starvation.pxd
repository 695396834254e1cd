# How long threads of this process were ready to run and did not, in C: for the watchdog's thread, without the GIL.

from libc.stdint cimport uint64_t

cdef enum:
    MOST_THREADS = 64           # of which a snapshot has the delays

cdef struct ThreadTimes:
    unsigned long long ran      # ns
    unsigned long long waited   # ns, ready to run, for a processor

cdef struct Delays:
    # By when this was taken.
    int count
    uint64_t[MOST_THREADS] thread           # as the system numbers it
    unsigned long long[MOST_THREADS] waited  # ns

cdef struct TimesFile:
    # Where the system tells the times of one thread. Whoever has it is the only one to use it.
    int fd                      # -1: none
    uint64_t thread

cdef ThreadTimes read_times(TimesFile *file, uint64_t thread) noexcept nogil
cdef void take_delays(Delays *delays) noexcept nogil
cdef uint64_t longest_since(Delays *before, uint64_t but_for) noexcept nogil
cdef bint waits_for_processor(uint64_t thread) noexcept nogil
