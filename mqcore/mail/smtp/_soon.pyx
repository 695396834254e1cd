# cython: nonecheck=True
# (A Link may be asked for anything before its __init__.)
"""The short way of a mail to the next server: no coroutine, as long as all goes as it should.

A mail is a `Job`, which is begun on a `Link` that is free, or waits for one. When a server says anything that is not usual, and
where there is anything to see to, the mail goes on in a coroutine, by `Delivery`, from where it is.
"""

import functools
import logging

cimport cython
from ..._hook cimport Hook
from ...smtp._exchange cimport OVER, SEND, UNUSUAL, Exchange, Next, is_plain, write_commands
from .._counts cimport IN_CLEAR, IN_DOUBT
from .._mail cimport Mail

from ...smtp.content import make_content
from ..verdicts import CANCELLED, Verdict

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, unsigned long, int)
    enum:
        POLLIN

log = logging.getLogger(__name__)


@cython.final
cdef class Job:
    """A mail of a `Soon`. It ends once: it is delivered, cancelled, or goes on in a coroutine."""

    def go_slowly(self, begun=None):
        """The mail is delivered by a coroutine; with `begun`, a `Client`, in the midst of its transaction."""
        send = self.soon.sender.send
        self.answer(self.token, None, send if begun is None else functools.partial(send, begun=begun))

    def cancel(self):
        """It waited for a connection, and is not wanted any more."""
        self.answer(self.token, CANCELLED)

    def noted(self, error):
        """That it is delivered is on the disk, or cannot be written there."""
        self.finish(error)

    cdef int finish(self, error) except -1:
        cdef Soon soon = self.soon
        if error is not None:  # the next run does not know of it, and sends it again
            soon.sender.gateway.fail(str(error))
            soon.counts.numbers[IN_DOUBT] += 1
            self.answer(self.token, CANCELLED)
            return 0
        if has_plugins(soon.sent_hook):
            soon.sent[id(self.mails)] = self.mails
        self.answer(self.token, self.verdict)
        return 0


cdef class Link:
    """The part of a connection to the next server that each mail goes through.

    `is_used`: whether there was a transaction before, so that the server may have had enough of it. `is_clear`: whether it is
    in the clear because TLS failed. `is_open`: whether a transaction was left in the middle.

    A subclass has `hear(data)`, for what arrives while no mail is on its short way; `set_timer`, which lets `look` be called at
    the `deadline`; and `begin_anew(job, before, after)`, which asks for a transaction again that has begun, hears what the
    server said before and after the message was sent (None: it is not), and goes on from there.
    """

    def __init__(self, loop not None):
        self.now = loop.time
        self.fd = -1

    @property
    def is_sending(self):
        """Whether a mail is on its short way."""
        return self.exchange is not None

    def use(self, transport not None):
        self._transport = transport
        self.fd = transport.get_extra_info("socket").fileno()

    def offers(self, dict extensions not None, *, Py_ssize_t most, bint pipelining, bint lmtp):
        """What a server that is ready offers; how large messages may be, and whether it may be sent commands in groups."""
        self.says_size = "SIZE" in extensions
        self.most = most
        self.says_8bit = "8BITMIME" in extensions
        self.forwards = "XFORWARD" in extensions
        self.is_quick = pipelining and "PIPELINING" in extensions
        self.lmtp = lmtp

    def is_readable(self):
        """Whether the server said something that is not read yet, or the connection is gone."""
        cdef pollfd asked
        if self._transport.is_closing():
            return True
        asked.fd = self.fd
        asked.events = POLLIN
        asked.revents = 0
        return poll(&asked, 1, 0) != 0

    cpdef bint begin(self, Job job) except -1:
        """Whether the mail is being sent now; else its way is longer."""
        cdef bytes content
        cdef str parameters = ""
        if not self.is_quick or job.is_forwarded and self.forwards:
            return False
        try:
            content = make_content(job.mail.whole())
        except Exception:  # no memory, or no file: a coroutine meets with it too, and says so
            return False
        if self.most and len(content) > self.most or b"\0" in content:
            return False
        if self.says_size:
            parameters = f" SIZE={len(content)}"
        if self.says_8bit and not content.isascii():
            parameters += " BODY=8BITMIME"
        job.content = content
        self.job = job
        self.exchange = Exchange.__new__(Exchange, len(job.recipients), self.lmtp)
        self.is_open = True
        self._transport.write(write_commands(job.envelope, job.recipients, parameters))
        self.expect(self.timeout)
        return True

    cpdef object expect(self, double timeout):
        """So many seconds, for a reply. A connection that is used all the time sets no timer for each command."""
        self.deadline = <double>self.now() + timeout
        if self.due == 0 or self.due > self.deadline:
            self.set_timer()

    def data_received(self, bytes data not None):
        """Of asyncio's protocols."""
        cdef Exchange exchange = self.exchange
        cdef Py_ssize_t expected
        cdef Next what
        if exchange is None:
            self.hear(data)
            return
        expected = exchange.commands + exchange.messages
        what = exchange.receive(data)
        if exchange.before and what != SEND and self._transport.get_write_buffer_size():
            what = UNUSUAL  # who has not got all of a message cannot have taken it
        if what == SEND:
            self._transport.write(self.job.content)
            self.expect(self.answer_timeout + len(self.job.content) / self.min_rate)
        elif what == OVER:
            self.end()
        elif what == UNUSUAL:
            self.go_slowly()
        elif exchange.commands + exchange.messages != expected:
            self.expect(self.timeout)

    cdef int end(self) except -1:
        """All have it."""
        cdef Job job = self.job
        cdef Exchange exchange = self.exchange
        self.job = self.exchange = None
        self.is_open = False
        self.is_used = True
        return job.soon.delivered(self, job, exchange.replies)

    def go_slowly(self):
        """The mail that is on its short way goes on in a coroutine."""
        cdef Job job = self.job
        cdef Exchange exchange = self.exchange
        cdef Py_ssize_t before = exchange.before
        self.job = self.exchange = None
        if before:
            self.begin_anew(job, exchange.said[:before], exchange.said[before:])
        else:
            self.begin_anew(job, exchange.said, None)
        job.go_slowly(self)


@cython.final
cdef class Soon:
    """What a sink sends without a coroutine, as `Sink.deliver_soon` has it: mails that are alone in their transactions, with
    plain addresses, of which the server need not be told anything else."""

    def __init__(self, sender not None, forwarded_of not None):
        self.sender = sender
        self.pool = sender.pool
        self.record = sender.sink.record
        self.partly = {} if self.record is None else self.record.partly
        self.forwarded_of = forwarded_of
        self.counted = sender.replies
        self.sent = sender.sent
        self.counts = sender.counts
        self.data_hook = sender.data_hook
        self.sent_hook = sender.sent_hook
        self.together = sender.together

    @property
    def runs_sent_hook(self):
        """Whether a plugin is to be told of what is sent."""
        return has_plugins(self.sent_hook)

    def deliver_soon(self, tuple mails not None, token, answer not None):
        cdef Job job
        if len(mails) != 1 or has_plugins(self.data_hook) or self.sender.is_stopping:
            return False
        job = self.job_for(mails)
        if job is None:
            return False
        job.token = token
        job.answer = answer
        return self.pool.add(job)

    cdef Job job_for(self, tuple mails):
        """None if there is anything about the mail that takes a longer way."""
        cdef Mail mail = mails[0]
        cdef Job job
        origin = mail.origin
        known = mail.all_known()
        if origin.hops or origin.utf8 or type(known) is not dict or "dsn" in known:
            return None
        envelope = mail.envelope
        recipients = mail.recipients
        if type(envelope) is not str or not is_plain(envelope) or type(recipients) is not list or not recipients:
            return None
        for recipient in recipients:
            if type(recipient) is not str or not recipient or not is_plain(recipient):
                return None
        if len(recipients) > 1 and self.together or self.partly and origin.id in self.partly:
            return None
        job = Job.__new__(Job)
        job.soon = self
        job.mails = mails
        job.mail = mail
        job.envelope = envelope
        job.recipients = recipients[:] if len(recipients) == 1 else list(dict.fromkeys(recipients))
        job.is_forwarded = mail.connection is not None and bool(self.forwarded_of(mail))
        return job

    cdef int delivered(self, Link link, Job job, list replies) except -1:
        """The server has it for all recipients, as it replied, by LMTP to each of them."""
        cdef Mail mail = job.mail
        cdef list results = []
        cdef Py_ssize_t number = 0
        job.content = None
        if link.is_clear:
            self.counts.numbers[IN_CLEAR] += 1
        for recipient in job.recipients:
            code, text = replies[number]
            self.counted[code] += 1
            results.append({"recipient": recipient, "state": "message", "code": code, "description": text})
            if number + 1 < len(replies):
                number += 1
        self.pool.leave(link)
        mail.result_list = results
        try:
            mail.all_known()["results"] = [result.copy() for result in results]
        except Exception:  # a plugin left there what is no usual dict meanwhile
            log.exception("the results of mail %s cannot be noted in its json", mail.origin.id)
        code, text = replies[0]
        job.verdict = Verdict.accepted(f"passed on: {code} {text}")
        if self.record is None:
            return job.finish(None)
        self.record.note_soon([f"{mail.origin.id}\n"], job.noted)
        return 0


cdef inline bint has_plugins(Hook hook) except -1:
    return hook.chain is None or len(hook.chain.contexts) > 0
