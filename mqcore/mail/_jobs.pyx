"""Work for a thread that does without the GIL, and so never waits for the loop's thread, nor that for it."""

import os
import threading

cimport cython
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock
from cpython.pythread cimport WAIT_LOCK
from libc.errno cimport EINTR, errno
from posix.unistd cimport read, write


cdef class Job:
    """Something that blocks, and needs no GIL: in Cython, a class of one's own with `run`. It knows itself how it ended."""

    cdef void run(self) noexcept nogil:
        """For subclasses to override."""


@cython.final
@cython.no_gc_clear  # which would let go the job while it is done
cdef class JobThread:
    """Does jobs, one at a time. `ended` is called by `loop` when one is over.

    It keeps itself alive until it is closed. A process that ends without that may end in the middle of a job, as a crash
    would. Raises OSError, RuntimeError or MemoryError if there is no thread to be had.
    """

    def __cinit__(self, loop not None, ended not None):
        self.reads = self.writes = -1
        self.wakeup = PyThread_allocate_lock()
        if self.wakeup == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.wakeup, WAIT_LOCK)
        self.loop = loop
        self.ended = ended
        self.reads, self.writes = os.pipe()
        try:
            os.set_blocking(self.reads, False)
            self.thread = threading.Thread(target=self._run, name="mqcore-jobs", daemon=True)
            self.thread.start()
            loop.add_reader(self.reads, self._end)
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        if self.wakeup != NULL:
            PyThread_free_lock(self.wakeup)

    def _run(self):
        with nogil:
            while True:
                PyThread_acquire_lock(self.wakeup, WAIT_LOCK)
                if self.is_due:  # also when it is to end
                    self.is_due = False
                    self.job.run()
                    tell(self.writes)
                if self.is_closing:
                    break

    cpdef int begin(self, Job job) except -1:
        """Only when the one before is over."""
        if job is None or self.job is not None or self.writes < 0:
            raise RuntimeError("a thread that is not closed is given one job at a time")
        self.job = job
        self.is_due = True
        PyThread_release_lock(self.wakeup)
        return 0

    def _end(self):
        cdef char octet
        if read(self.reads, &octet, 1) == 1 and self.job is not None:
            job, self.job = self.job, None
            self.ended(job)

    cpdef int close(self) except -1:
        """Wait until a job that is begun is over, and end the thread."""
        if self.writes < 0:
            return 0
        self.is_closing = True
        PyThread_release_lock(self.wakeup)
        if self.thread is not None and self.thread.ident is not None:
            self.thread.join()
        if self.writes < 0:  # somebody else has closed it meanwhile
            return 0
        reads, writes = self.reads, self.writes
        self.reads = self.writes = -1
        self.job = None
        self.loop.remove_reader(reads)
        os.close(reads)
        os.close(writes)
        return 0


cdef void tell(int fd) noexcept nogil:
    """The pipe has room: there is one octet at most in it."""
    cdef char octet = 0
    while write(fd, &octet, 1) < 0 and errno == EINTR:
        pass
