"""Storing what is good, and what failed where that goes, in groups."""

import asyncio
import logging
from collections import deque

cimport cython
from cpython.time cimport monotonic
from ._histogram cimport Histogram
from ._jobs cimport Job, JobThread
from ._mail cimport Mail
from ._transaction cimport Transaction

from .errors import SinkError, SinkFull
from .threads import in_thread, to_the_end

BATCH = 256
"""At most so many mails are read at once, and stored at once, or a few more."""
BATCH_BYTES = 8 << 20

cdef double FIRST_PAUSE = 1.0, LONGEST_PAUSE = 30.0     # s until a store that was full is tried again

log = logging.getLogger(__name__)

cdef object FULL = object()


@cython.final
cdef class Writer:
    """Stores the good mails of transactions, and sets aside the bad ones in `failed`, if there is that.

    What is added while a thread stores a group makes the next one: the slower the disk, the larger the groups. After its
    error nothing more is written to a store, as it may not be able to undo what it had begun: `on_error` is called, and
    the next run mends it. One that is only full is tried again where it `goes_on`; where mails come from a queue, for as long
    as it is full. What was taken back while it waited is `dropped`: on a slow disk, clients that lost their patience send the
    same again.
    """

    def __cinit__(self, store, failed, done not None, dropped not None, on_error not None, bint goes_on,
                  bint is_queue, Histogram seconds not None, Histogram sizes not None):
        self.store = store
        self.failed = failed
        self.done = done
        self.dropped = dropped
        self.on_error = on_error
        self.blocks = store is not None and store.blocks
        self.goes_on = goes_on
        self.is_queue = self.waits = is_queue
        self.delayed = []
        self.pause = FIRST_PAUSE
        self.seconds = seconds
        self.sizes = sizes
        self.waiting = deque()
        self.work = asyncio.Event()
        self.broken = set()

    cdef bint add(self, Transaction transaction) except -1:
        """Store it. Whether that is done at once, as there is nothing to wait for; if not, `done` is called."""
        if self.blocks or self.broken or transaction.bad:
            self.waiting.append(transaction)
            if not self.is_begun:
                self.work.set()
            return False
        if self.store is not None:
            try:
                self.store.store(transaction.good_mails())
            except SinkFull:
                self.waiting.append(transaction)  # it is tried once more, in its turn
                self.work.set()
                return False
            except Exception as error:
                self.give_up(self.store, error)
                return self.add(transaction)
        transaction.committing = True
        return True

    cdef int delay(self, Transaction transaction) except -1:
        """There is no room for it. Others are tried meanwhile: for a small one there may be some."""
        transaction.committing = False
        self.delayed.append(transaction)
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(self.pause, self._try_again)
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
        return 0

    def _try_again(self):
        self.timer = None
        self.waiting.extend(self.delayed)
        self.delayed.clear()
        self.work.set()

    cdef int hurry(self) except -1:
        """Try what waits for room once more, and wait no longer."""
        self.waits = False
        if self.timer is not None:
            self.timer.cancel()
            self._try_again()
        return 0

    cdef int close(self) except -1:
        """Let `run` end when all is stored."""
        self.closed = True
        self.work.set()
        return 0

    async def run(self):
        if self.store is not None and self.store.begins:
            try:
                self.jobs = JobThread(asyncio.get_running_loop(), self._end)
            except (OSError, RuntimeError, MemoryError):
                pass  # it goes without
        try:
            while self.waiting or self.group or not self.closed:
                if self.crash is not None:
                    raise self.crash
                if not self.is_begun and (self.waiting or self.group):
                    self.group = self.group or self.next_group()
                    if not self.begin_soon():
                        await self._write(self.group)
                        self.group = None
                        self.was_full = False
                else:
                    self.work.clear()
                    await self.work.wait()
        except asyncio.CancelledError:
            self.is_cancelled = True  # the loop goes on meanwhile: this may be a disk that answers no more
            await to_the_end(self._wait_for_job, lambda: not self.is_begun)
            raise
        finally:
            if self.jobs is not None:
                self.jobs.close()

    async def _wait_for_job(self):
        while self.is_begun:
            self.work.clear()
            await self.work.wait()

    # By jobs of the store, from one callback of the loop to the next

    cdef bint begin_soon(self) except -1:
        """Whether the store has a job for the group. When that is over the next one follows: `run` is needed no more until
        there is nothing to do, or something that no job does."""
        cdef Transaction transaction
        cdef list mails = []
        cdef Job job
        if self.jobs is None or self.was_full or self.store in self.broken:
            return False
        for transaction in self.group:
            if transaction.bad:
                return False
            mails += transaction.good_mails()
        if not mails:
            return False
        try:
            job = self.store.begin(mails)
        except SinkFull:
            return False
        except Exception as error:
            self.give_up(self.store, error)
            return False
        if job is None:
            return False
        self.begun = monotonic()
        self.jobs.begin(job)
        self.is_begun = True
        return True

    def _end(self, job):
        if self.is_cancelled:  # whoever would be told is gone
            self.is_begun = False
            self.work.set()
            return
        try:
            self.end(job)
        except BaseException as error:
            self.crash = error
            self.is_begun = False
        if self.crash is not None or self.group is not None and not self.is_begun:
            self.work.set()

    cdef int end(self, job) except -1:
        """It is over: settle its transactions, and begin the next one if there is one."""
        cdef Transaction transaction
        cdef list group = self.group
        cdef bint stored = True
        cdef Py_ssize_t count = 0
        try:
            self.store.end(job)
        except SinkFull:
            self.is_begun = False
            self.was_full = True  # for `run`, which tries again
            return 0
        except Exception as error:
            self.give_up(self.store, error)
            stored = False
        self.group = None
        for transaction in group:
            count += len(transaction.good)
        if stored:
            self.seconds.count(monotonic() - self.begun)
            self.sizes.count(count)
            self.pause = FIRST_PAUSE
        for transaction in group:
            transaction.full = False
            self.done(transaction, True, stored)
        self.is_begun = False
        if self.waiting:
            self.group = self.next_group()
            self.begin_soon()
        return 0

    cdef list next_group(self):
        cdef list group = []
        cdef Transaction transaction
        cdef Py_ssize_t count = 0, size = 0
        while self.waiting and count < BATCH and size < BATCH_BYTES:
            transaction = self.waiting.popleft()
            if transaction.cancelled and not transaction.committing:
                self.dropped(transaction)
                continue
            transaction.committing = True
            group.append(transaction)
            count += len(transaction.mails)
            for mail in transaction.mails:
                size += (<Mail>mail).length()
        return group

    async def _write(self, list group):
        """The bad ones first: what cannot be set aside comes again, and the good ones of its transaction with it."""
        cdef Transaction transaction
        cdef list bad = [], good = []
        if None in group:
            raise TypeError("a group has transactions")
        for transaction in group:
            bad += transaction.bad
        set_aside = await self._store(self.failed, bad)
        if set_aside is FULL and len(group) > 1:
            for transaction in group:
                await self._write([transaction])
            return
        for transaction in group:
            if set_aside is True or not transaction.bad:
                good += transaction.good_mails()
        all_stored = await self._store(self.store, good)
        for transaction in group:
            aside = set_aside is True or not transaction.bad
            stored = all_stored
            if stored is FULL and aside and transaction.good and len(group) > 1:
                stored = await self._store(self.store, transaction.good_mails())  # for a small one there may be room
            if stored is FULL and self.waits:
                self.delay(transaction)
                continue
            transaction.full = stored is FULL or set_aside is FULL
            self.done(transaction, aside, stored is True and aside)

    async def _store(self, store, list mails):
        """Whether they are stored. If not, which may be as it is FULL, the source still has them."""
        if not mails or store is None:
            return True
        if store in self.broken:
            return False
        cdef double begun = monotonic()
        try:
            if store.blocks:
                await in_thread(store.store, mails)
                if store is self.store:
                    self.seconds.count(monotonic() - begun)
                    self.sizes.count(len(mails))
            else:
                store.store(mails)
        except Exception as error:
            if self.goes_on and isinstance(error, SinkFull) and (store is self.store or not self.is_queue):
                if not self.delayed:
                    log.warning("%s", error)
                return FULL
            self.give_up(store, error)
            return False
        if store is self.store:
            self.pause = FIRST_PAUSE
        return True

    cdef int give_up(self, store, error) except -1:
        if not isinstance(error, SinkError):  # a bug, and who can tell what it has written
            log.error("a store failed", exc_info=error)
        self.broken.add(store)
        self.on_error(str(error) or repr(error))
        return 0
