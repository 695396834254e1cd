# Work for a thread that does without the GIL.

from cpython.pythread cimport PyThread_type_lock

cdef class Job:
    cdef void run(self) noexcept nogil          # in the thread

cdef class JobThread:
    cdef object loop
    cdef object ended
    cdef object thread
    cdef PyThread_type_lock wakeup              # is free when there is something to do
    cdef Job job                                # what it has to do, or does
    cdef bint is_due                            # it has not begun with that yet
    cdef bint is_closing
    cdef int reads                              # the ends of a pipe, on which it tells the loop that a job is over
    cdef int writes

    cpdef int begin(self, Job job) except -1
    cpdef int close(self) except -1
