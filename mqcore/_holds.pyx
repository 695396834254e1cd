# cython: nonecheck=False
# (None checks need the GIL, and what is called without it has no None to check.)
"""Who has control of which message: the held ones in buckets by their timeout, and the queue of those that were given back.

A give-back claims the message in the thread that makes it, and all that follows happens on the dispatcher's thread. Another
thread only changes HELD to GIVEN_BACK, with the GIL, and puts the message into a list, from which that thread takes one after
the other, however many there are.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from .loop._atomic cimport fence, get, load, load_version
from .loop._call cimport take_error
from .loop._libuv cimport UV_TIMER
from .loop._list cimport Link, first, init_list, is_empty
from .loop._reactor cimport PyThread_get_thread_ident, Reactor, close_handle, new_handle, opened, uv_of
from .loop._seal cimport seal
from ._message cimport (
    GIVEN_BACK, HELD, QUEUED, RUNNING, TO_COMPLETE, TO_CONTINUE, TO_RETRY, Counters, Drops, Entry, HoldLists, Message,
    TimeoutBucket, arm_deadline, end_hold, make_stand_in, message_at, move, stand_in_for, write_off)

cdef extern from "Python.h":
    Py_ssize_t references "Py_REFCNT"(PyObject *) noexcept  # of one that may be dead: no `object`, which would be counted

cdef extern from *:
    Entry *load_entry "mqcore_load"(Entry **) noexcept nogil  # of loop/_atomic.pxd

cdef uint64_t holds_begun = 0  # of dispatchers that are closed
cdef uint64_t holds_ended = 0
cdef HoldLists *first_open = NULL  # those of the others


def holds():
    """How many holds this process has begun and ended: `(begun, ended)`. For tests; any thread."""
    cdef HoldLists *lists = first_open
    cdef uint64_t begun = holds_begun
    cdef uint64_t ended = holds_ended
    while lists != NULL:
        begun += lists.holds_begun
        ended += lists.holds_ended
        lists = lists.next_open
    return begun, ended


cdef void add_open(HoldLists *lists) noexcept:
    global first_open
    lists.next_open = first_open
    first_open = lists


cdef void remove_open(HoldLists *lists) noexcept:
    """It is closed; it need not have been open."""
    global first_open, holds_begun, holds_ended
    cdef HoldLists **place = &first_open
    while place[0] != NULL and place[0] != lists:
        place = &place[0].next_open
    if place[0] != NULL:
        place[0] = lists.next_open
        holds_begun += lists.holds_begun
        holds_ended += lists.holds_ended


@cython.final
@cython.no_gc_clear  # its reactor is needed as long as it is there
cdef class HoldTable:

    def __cinit__(self):
        init_list(&self.lists.queued)
        init_list(&self.lists.given)
        init_list(&self.lists.dead)

    cdef int open(self) except -1:
        """Its reactor is open, and from now on messages may be held. What raises leaves nothing open."""
        self.refill()
        if self.lists.stand_in == NULL:
            raise MemoryError()
        add_open(&self.lists)
        self.lists.deadline = new_handle(&self.reactor.state, UV_TIMER)
        if self.lists.deadline == NULL:
            raise MemoryError()
        self.reactor.state.uv.timer_init(self.reactor.state.pointer, uv_of(self.lists.deadline))  # cannot fail
        self.reactor.state.uv.unref(uv_of(self.lists.deadline))  # what is held keeps the loop going, not its deadline
        opened(&self.reactor.state)
        return 0

    cdef void close(self) noexcept:
        """Nothing is held any more. More than once is fine."""
        remove_open(&self.lists)
        if self.lists.deadline != NULL and not self.reactor.forked:
            close_handle(self.lists.deadline)
        self.lists.deadline = NULL

    def __dealloc__(self):
        cdef TimeoutBucket *bucket
        remove_open(&self.lists)
        while self.lists.buckets != NULL:
            bucket = self.lists.buckets
            self.lists.buckets = bucket.next
            free(bucket)
        if self.lists.stand_in != NULL:
            Py_DECREF(<Message>self.lists.stand_in)
        if self.lists.native != NULL:
            Py_DECREF(<object>self.lists.native)

    cdef TimeoutBucket *bucket_of(self, double seconds) except NULL:
        cdef uint64_t timeout = <uint64_t>(seconds * 1e9)
        cdef TimeoutBucket *bucket = self.lists.buckets
        while bucket != NULL:
            if bucket.timeout == timeout:
                return bucket
            bucket = bucket.next
        bucket = <TimeoutBucket *>calloc(1, sizeof(TimeoutBucket))
        if bucket == NULL:
            raise MemoryError()
        init_list(&bucket.held)
        bucket.timeout = timeout
        bucket.next = self.lists.buckets
        self.lists.buckets = bucket
        return bucket

    cdef StepCounts snapshot(self) noexcept:
        """The books as they are at one moment. Any thread, with the GIL."""
        cdef StepCounts steps
        cdef uint32_t version
        cdef uint64_t passed
        cdef Batch *batch = self.batch
        while True:
            version = load_version(&self.lists.steps_version)
            steps = self.lists.steps
            steps.held = get(&self.lists.steps.held)  # these two may be changing without the GIL
            steps.running = get(&self.lists.steps.running)
            fence()
            if version % 2 == 0 and version == load_version(&self.lists.steps_version):
                break
        steps.held -= self.lists.given_count
        steps.running += self.lists.given_count
        while batch != NULL:
            passed = load(&batch.passed)
            steps.entered += passed
            steps.continued += passed
            if passed < batch.count:
                steps.entered += 1
                steps.running += 1
            batch = batch.outer
        return steps

    cdef void begin_batch(self, Batch *batch) noexcept:
        batch.outer = self.batch
        self.batch = batch

    cdef void end_batch(self, Batch *batch, Entry *stopped) noexcept:
        """What is in it comes into the books. `stopped`: where the step is that did not pass, or NULL."""
        cdef Entry *entry = batch.entries
        cdef uint64_t calls = batch.passed if stopped == NULL else batch.passed + 1
        self.batch = batch.outer
        self.lists.steps.entered += batch.passed
        self.lists.steps.continued += batch.passed
        while entry.native != NULL:
            entry.counters.caller.calls += calls
            if entry == stopped:
                calls -= 1
            entry += 1

    cdef uint64_t calls_in_batches(self, Counters *counters) noexcept:
        """Calls of a plugin's hook that are not in its counters yet. Any thread, with the GIL."""
        cdef uint64_t calls = 0
        cdef Batch *batch = self.batch
        while batch != NULL:
            calls += calls_in(batch, counters)
            batch = batch.outer
        return calls

    cdef void end_and_queue(self, Message message, Drops *drops) noexcept:
        """A message was given back, as its `decision` says: its hold is over, and it goes behind all others. HELD -> QUEUED; on
        another thread, or where some are GIVEN_BACK, HELD -> GIVEN_BACK. Any thread, with the GIL."""
        end_hold(message, drops)
        Py_INCREF(message)  # the queue's
        if is_empty(&self.lists.given) and self.reactor.thread == PyThread_get_thread_ident():
            move(&self.lists, message, HELD, QUEUED)
            self.reactor.request_tick()
        else:
            move(&self.lists, message, HELD, GIVEN_BACK)
            self.reactor.wake()

    cdef bint collect_one(self) noexcept:
        """GIVEN_BACK -> QUEUED, for the first that is. Whether there was any. The dispatcher's thread."""
        cdef Link *link = first(&self.lists.given)
        if link == NULL:
            return False
        self.collect(<Message>given_at(link))
        return True

    cdef void collect(self, Message message) noexcept:
        """GIVEN_BACK -> QUEUED, for this one, wherever it is in the list. The dispatcher's thread."""
        move(&self.lists, message, GIVEN_BACK, QUEUED)

    cdef bint has_queued(self) noexcept:
        """Whether any message was given back, wherever that was."""
        return not is_empty(&self.lists.queued) or not is_empty(&self.lists.given)

    cdef bint has_dead(self) noexcept:
        """Whether any message was deallocated while it was held."""
        return not is_empty(&self.lists.dead)

    cdef bint replace_dead(self) noexcept:
        """Abandon another message in the place of the first of those, and free that. False: there is none, or no memory
        just now. The dispatcher's thread; anybody's code may run."""
        self.refill()
        if self.lists.stand_in == NULL or is_empty(&self.lists.dead):
            return False
        self.use_stand_in_for(given_at(first(&self.lists.dead)))
        return True

    cdef void use_stand_in_for(self, PyObject *dead) noexcept:
        cdef Message stand_in = <Message>self.lists.stand_in
        self.lists.stand_in = NULL
        Py_DECREF(stand_in)  # it is this function's now
        stand_in_for(dead, stand_in)

    cdef PyObject *take_queued(self) noexcept:
        """-> RUNNING, for the one that was given back first: with the queue's reference, or NULL when there is none."""
        cdef PyObject *each
        if is_empty(&self.lists.queued):
            self.collect_one()
        each = message_at(first(&self.lists.queued))
        if each != NULL:
            move(&self.lists, <Message>each, QUEUED, RUNNING)
        return each

    cdef PyObject *take_due(self, uint64_t now) noexcept:
        """HELD -> RUNNING, for the one whose timeout was over first by now: a new reference, or NULL when there is none. The
        caller ends the hold."""
        cdef uint64_t due = 0
        cdef PyObject *next = self.next_due(&due)
        return self.take_held(next) if next != NULL and due <= now else NULL

    cdef PyObject *next_due(self, uint64_t *due) noexcept:
        """The message whose timeout is over first, borrowed, and when; NULL when there is none."""
        cdef TimeoutBucket *bucket = self.lists.buckets
        cdef PyObject *found = NULL
        cdef PyObject *each
        while bucket != NULL:
            each = oldest_in(bucket) if bucket.timeout else NULL
            if each != NULL and (found == NULL or (<Message>each).since + bucket.timeout < due[0]):
                found = each
                due[0] = (<Message>each).since + bucket.timeout
            bucket = bucket.next
        return found

    cdef PyObject *take_held(self, PyObject *each) noexcept:
        Py_INCREF(<Message>each)
        move(&self.lists, <Message>each, HELD, RUNNING)
        return each

    cdef PyObject *take_any(self) noexcept:
        """HELD or QUEUED -> RUNNING, for any message that there is: with a reference, or NULL when there is none. For one that
        is dead, or that is just being deallocated, it is another one. The dispatcher's thread; anybody's code may run."""
        cdef PyObject *each
        while True:
            self.refill()  # first, as memory is made
            while self.collect_one():
                pass
            each = self.first_held()
            if each == NULL:
                return self.take_queued()
            if references(each) > 0:
                return self.take_held(each)
            if self.lists.stand_in != NULL:
                self.use_stand_in_for(each)
            else:
                write_off(each)

    cdef PyObject *first_held(self) noexcept:
        """Of any bucket, borrowed, whether it is alive or not; NULL when all are empty."""
        cdef TimeoutBucket *bucket = self.lists.buckets
        while bucket != NULL:
            if not is_empty(&bucket.held):
                return message_at(first(&bucket.held))
            bucket = bucket.next
        return NULL

    cdef void arm_next(self) noexcept:
        """Have the timer fire for the next that is due."""
        cdef uint64_t due = 0
        self.lists.deadline.rung = False
        self.lists.deadline.due = 0
        if self.next_due(&due) != NULL:
            arm_deadline(&self.lists, due)

    cdef void refill(self) noexcept:
        """Have a message ready to stand in for another one."""
        if self.lists.stand_in == NULL and (<int (*)(HoldLists *) noexcept>make_stand_in)(&self.lists) < 0:
            Py_DECREF(<object>take_error())  # MemoryError: tried again in the next tick

cdef HoldTable new_hold_table(Reactor reactor):
    cdef HoldTable table = HoldTable.__new__(HoldTable)
    table.reactor = reactor
    table.lists.reactor = <PyObject *>reactor
    return table


cdef uint64_t calls_in(Batch *batch, Counters *counters) noexcept:
    cdef Entry *entry = batch.entries
    cdef Entry *last
    cdef Entry *at
    cdef uint64_t passed
    while entry.native != NULL and entry.counters != counters:
        entry += 1
    if entry.native == NULL:
        return 0
    last = entry
    while last[1].native != NULL:
        last += 1
    while True:  # the dispatcher's thread may go on meanwhile
        passed = load(&batch.passed)
        at = load_entry(&(<Message>batch.messages[passed]).entry) if passed < batch.count else NULL
        if load(&batch.passed) == passed:
            return passed + 1 if entry <= at <= last else passed


cdef void count_given(Counters *counters, int decision) noexcept nogil:
    """Control was given back; with fail, that counts when the step ends."""
    if decision == TO_CONTINUE:
        counters.continues += 1
    elif decision == TO_COMPLETE:
        counters.completes += 1
    elif decision == TO_RETRY:
        counters.retries += 1


cdef bint has_pending(void *table) noexcept nogil:
    """Whether something is held, for which the loop must go on."""
    return (<HoldLists *>table).steps.held > 0


cdef void stop_when_idle(void *table) noexcept nogil:
    """Stop the timer when nothing is held any more, so that an idle dispatcher does not wake up."""
    cdef HoldLists *lists = <HoldLists *>table
    if lists.steps.held == 0 and lists.deadline != NULL and lists.deadline.due:
        lists.deadline.due = 0
        lists.deadline.loop.uv.timer_stop(uv_of(lists.deadline))  # cannot fail


# --------------------------------------------------------------------------------------------------------- By age

cdef inline PyObject *given_at(Link *link) noexcept:
    return <PyObject *>(<char *>link - <size_t>&(<Message><PyObject *>NULL).by_state.given)


cdef PyObject *alive_from(PyObject *each) noexcept:
    """This message, or the first after it that is alive. One that is not is in the list of the dead; or CPython puts its
    deallocation off, as that of deeply nested objects, and with it the finalizer, which takes the message out."""
    while each != NULL and references(each) <= 0:
        each = next_in_bucket(each)
    return each


cdef PyObject *oldest_in(TimeoutBucket *bucket) noexcept:
    return alive_from(message_at(first(&bucket.held)))


seal(HoldTable)
