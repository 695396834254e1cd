"""What was published on a channel, and who is told what became of it; and the short way of a mail to there and back."""

import functools

cimport cython
from libc.stdint cimport uint64_t

from ...amqp._unconfirmed cimport Outcome
from .._counts cimport NACKED, RETURNED, Row
from .._mail cimport Mail
from ._incoming cimport UnreadRaw
from ._link cimport Link
from ._raw cimport pass_on_raw, write_raw

from ...amqp.errors import StateError
from ..verdicts import ACCEPTED


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Waiter:
    """Who waits for the outcome of one publish. Each is told one, also when the connection ends, and is in no cycle after that;
    so the collector of garbage need not look at the many that there are."""

    cdef int tell(self, Outcome outcome) except -1:
        """None: nobody waits any more."""
        if self.giver is None:
            self.take(self.key, outcome)
        elif outcome is not None and outcome.kind == "ack":
            if self.giver.voided:
                self.giver.voided.discard(id(self.mails))
            self.take(self.key, ACCEPTED)
        else:
            self.take(self.key, None, functools.partial(self.giver.deliver, first={0: outcome}))
        return 0


cdef class Outcomes:
    """`most`: octets that a message may have. A subclass has `connection`: one that can be published on now, or None; and calls
    `look_again` when that may be another one than before."""

    def __init__(self, Row counts not None, Py_ssize_t most):
        self.counts = counts
        self.most = most
        self.waiters = [None] * 256
        self.first = self.next = 1
        self.kinds = {}

    @property
    def outcomes(self):
        """How many there were, of each kind that there was."""
        return {"ack": self.acks, **self.kinds} if self.acks else dict(self.kinds)

    def look_again(self):
        self.link = None

    def begin_channel(self, unsigned int channel):
        """A new one, in confirm mode."""
        self.let_go()
        self.channel = channel
        self.first = self.next = 1

    cdef Link find_link(self):
        """The connection that can be published on, or None."""
        if self.link is None:
            self.link = self.connection
        return self.link if self.link is not None and self.link.is_writable else None

    cdef int grow(self) except -1:
        cdef list waiters = [None] * (2 * len(self.waiters))
        cdef uint64_t tag
        for tag in range(self.first, self.next):
            waiters[tag & <uint64_t>(len(waiters) - 1)] = self.waiters[tag & <uint64_t>(len(self.waiters) - 1)]
        self.waiters = waiters
        return 0

    cdef int add(self, uint64_t tag, Waiter waiter) except -1:
        """The tags of a channel only rise, by one each time."""
        if tag != self.next:
            raise RuntimeError(f"publish {tag} where {self.next} is the next")
        if tag - self.first >= <uint64_t>len(self.waiters):
            self.grow()
        self.waiters[tag & <uint64_t>(len(self.waiters) - 1)] = waiter
        self.next = tag + 1
        self.unconfirmed += 1
        return 0

    cdef Waiter pop(self, uint64_t tag):
        """None if nobody waits for it."""
        cdef uint64_t mask = <uint64_t>len(self.waiters) - 1
        if not self.first <= tag < self.next:
            return None
        cdef Waiter waiter = self.waiters[tag & mask]
        if waiter is None:
            return None
        self.waiters[tag & mask] = None
        self.unconfirmed -= 1
        while self.first < self.next and self.waiters[self.first & mask] is None:
            self.first += 1
        return waiter

    def take(self, Outcome outcome not None):
        """Of the last channel that was published on."""
        if outcome.kind == "ack":
            self.acks += 1
        else:
            self.kinds[outcome.kind] = self.kinds.get(outcome.kind, 0) + 1
            if outcome.kind == "nack":
                self.counts.numbers[NACKED] += 1
            elif outcome.kind == "returned":
                self.counts.numbers[RETURNED] += 1
        cdef Waiter waiter = self.pop(outcome.tag)
        if waiter is not None:
            waiter.tell(outcome)

    def let_go(self):
        """Nobody waits any more for what is on its way."""
        cdef list waiters = [self.pop(tag) for tag in range(self.first, self.next)]
        for waiter in waiters:
            if waiter is not None:
                (<Waiter>waiter).tell(None)

    def publish(self, Link connection not None, str exchange, str queue, bytes properties, bytes body, take not None, key):
        """`take(key, outcome)` is called later. Raises ValueError for properties that are too large."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.take = take
        waiter.key = key
        self.add(connection.publish(self.channel, exchange, queue, properties, body), waiter)


cdef class Soon:
    """What a sink publishes without a coroutine, as `Sink.deliver_soon` has it. A subclass has `deliver`, for what does not go
    as it should; and `encode`, which gives properties and body of a mail.

    `raw`: messages are mails as they are. `is_careful`: nothing is published in this way.
    """

    def __init__(self, str exchange not None, str queue not None, *, bint raw, bint is_careful):
        self.exchange = exchange
        self.queue = queue
        self.raw = raw
        self.is_careful = is_careful
        self.voided = set()

    def begin_soon(self, Outcomes outcomes not None):
        self.outcomes = outcomes

    def deliver_soon(self, tuple mails not None, token, answer not None):
        cdef Waiter waiter
        cdef Outcomes outcomes = self.outcomes
        cdef Link link = None if outcomes is None else outcomes.find_link()
        cdef Mail mail
        cdef bytes properties, body
        if link is None or self.is_careful or len(mails) != 1:
            return False
        mail = mails[0]
        try:
            if self.raw:
                properties = properties_of(mail)
                body = mail.whole()
            else:
                properties, body = self.encode(mail)
            if len(body) > outcomes.most:
                return False
            waiter = Waiter.__new__(Waiter)
            waiter.take = answer
            waiter.key = token
            waiter.mails = mails
            waiter.giver = self
            outcomes.add(link.publish(outcomes.channel, self.exchange, self.queue, properties, body), waiter)
        except (ValueError, TypeError, StateError):
            return False  # `deliver` says why, or waits for another channel
        return True


cdef bytes properties_of(Mail mail):
    """Of a message that is the mail as it is."""
    if mail.known is None and type(mail.unread) is UnreadRaw:
        return pass_on_raw((<UnreadRaw>mail.unread).header, (<UnreadRaw>mail.unread).id)
    return write_raw(mail.all_known(), mail.origin.id)
