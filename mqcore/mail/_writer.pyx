"""Storing what the plugins are done with, in groups."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

cimport cython
from ._mail cimport Mail

from .. import COMPLETE, FAIL, Outcome
from .errors import SinkError

BATCH = 256
"""At most so many mails are read at once, and stored at once, or a few more."""
BATCH_BYTES = 8 << 20

Finished = tuple[Mail, Outcome]
Done = Callable[[Sequence[Finished], bool], object]


@cython.final
cdef class Job:
    """Mails that belong together."""

    def __cinit__(self, mails, done):
        self.mails = mails
        self.done = done
        self.good = []
        self.bad = []
        for finished in mails:
            mail, outcome = finished
            if (<Mail?>mail).rejection is not None or outcome is FAIL:
                self.bad.append(mail)
            else:
                self.good.append(finished)


@cython.final
cdef class Writer:
    """Writes mails to the sink, and those that failed or were rejected to `failed`, and counts them.

    What is added while a thread stores a group makes the next one: the slower the disk, the larger the groups. After its
    error nothing more is written to a sink, as it may not be able to undo what it had begun: `on_error` is called, the
    error is in the report, and the next run mends it.
    """

    def __cinit__(self, sink not None, failed, report not None, on_error not None):
        self.sink = sink
        self.failed = failed
        self.report = report
        self.counts = report.counts
        self.on_error = on_error
        self.waits = sink.waits
        self.jobs = deque()
        self.work = asyncio.Event()
        self.broken = set()

    cpdef int add(self, mails, done) except -1:
        """Store these; then `done(mails, stored)` is called in the loop's thread. If not `stored`, none is in the sink.

        At once, if there is nothing to wait for.
        """
        cdef Job job = Job(mails, done)
        if self.waits or self.broken or job.bad:
            self.jobs.append(job)
            self.work.set()
        else:
            self.sink.store(mails_of(job.good))
            self.count_stored(job.good)
            done(mails, True)
        return 0

    def close(self):
        """Let `run` end when all is stored."""
        self.closed = True
        self.work.set()

    async def run(self):
        while self.jobs or not self.closed:
            if self.jobs:
                await self._settle(self.next_group())
            else:
                self.work.clear()
                await self.work.wait()

    cdef list next_group(self):
        cdef list group = []
        cdef Job job
        cdef Py_ssize_t count = 0, size = 0
        while self.jobs and count < BATCH and size < BATCH_BYTES:
            job = self.jobs.popleft()
            group.append(job)
            count += len(job.mails)
            for mail, _ in job.mails:
                size += len((<Mail>mail).content)
        return group

    async def _settle(self, list group):
        """The bad ones first: what cannot be set aside comes again, and the good ones of its job with it."""
        cdef Job job
        cdef list bad = [], good = []
        cdef Py_ssize_t count = 0
        for job in group:
            bad += job.bad
            count += len(job.mails)
        set_aside = await self._store(self.failed, bad)
        for job in group:
            if set_aside or not job.bad:
                good += job.good
        stored = await self._store(self.sink, mails_of(good))
        self.counts.unfinished += count - set_aside * len(bad) - stored * len(good)
        if set_aside:
            self.count_set_aside(bad)
        if stored:
            self.count_stored(good)
        for job in group:
            if set_aside and not stored and job.good:
                self.counts.in_doubt += len(job.bad)  # they come again with the good ones
            job.done(job.mails, (set_aside or not job.bad) and (stored or not job.good))

    cdef int count_set_aside(self, list bad) except -1:
        cdef Py_ssize_t rejected = 0
        for mail in bad:
            rejected += (<Mail>mail).rejection is not None
        self.counts.rejected += rejected
        self.counts.failed += len(bad) - rejected
        return 0

    cdef int count_stored(self, list good) except -1:
        cdef Py_ssize_t completed = 0
        for _, outcome in good:
            completed += outcome is COMPLETE
        self.counts.completed += completed
        self.counts.continued += len(good) - completed
        return 0

    async def _store(self, sink, list mails):
        """Whether they are stored. If not, the source still has them."""
        if not mails or sink is None:
            return True
        if sink in self.broken:
            return False
        try:
            if sink.waits:
                await asyncio.to_thread(sink.store, mails)
            else:
                sink.store(mails)
        except SinkError as error:
            self.broken.add(sink)
            self.report.error = self.report.error or str(error)
            self.on_error()
            return False
        return True


cdef list mails_of(list finished):
    return [mail for mail, _ in finished]
