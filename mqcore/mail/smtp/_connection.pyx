"""One client of the SMTP or LMTP server: what it says becomes steps of plugins, and their outcomes become replies."""

import logging

cimport cython
from ..._hook cimport Hook
from .._mail cimport Connection, Mail, address_in, for_transaction, new_connection, new_mail
from .._names cimport numbered
from .._origin cimport new_origin
from .._transaction cimport Transaction
from ...smtp._data cimport DataReceiver
from ...smtp._protocol cimport AUTHENTICATE, GREETING, MAIL_FROM, MESSAGE, NOTHING, RCPT_TO, START_TLS, ServerProtocol
from ._host cimport Host
from ._incoming cimport Incoming
from ._trace cimport kind_of

from ... import FAIL
from ...smtp import syntax
from ...smtp.syntax import printable
from ..refusals import describe
from ..verdicts import ACCEPTED, UNAVAILABLE, Rejection

cdef enum:
    MAX_BUFFERED = 1 << 16  # while a step waits, no more than about so many octets are read ahead
    BIG = 1 << 14           # a message counts against the server's memory from so many octets on

MIN_RATE = 1000
"""Octets a second that a client must manage in the long run."""
HANDSHAKE_TIMEOUT = 30.0

log = logging.getLogger(__name__)

cdef object NO_ROOM = Rejection(452, "4.3.1 too many big messages at once; try again later")
cdef object HELD_OFF = Rejection(452, "4.3.1 the next owner of mails takes none now; try again later")
cdef object TOO_BIG = Rejection(452, syntax.NO_MEMORY)
cdef object GO_AWAY = Rejection(421, UNAVAILABLE.text)
cdef object NO_LOGIN_NOW = Rejection(454, "4.7.0 logins cannot be checked now; try again later")
cdef tuple STAGES = ("connect", "secure", "authenticate", "mailfrom", "rcptto", "data")
cdef Connection NOBODY = Connection(0, "")
cdef Mail NOTHING_SAID = new_mail(b"", {}, NOBODY, None)
cdef str ZEROS = "0" * 16
cdef object REFUSED_LOGIN = Rejection(535, "5.7.8 login or password is wrong")


@cython.final
cdef class SmtpTransaction(Transaction):
    """A message that came in, for one or more recipients; in SMTP one reply is for all, in LMTP each has its own."""

    cpdef object settle(self, list verdicts):
        connection, self.connection = self.connection, None
        if connection is None or not verdicts:
            raise RuntimeError("the gateway settles this, once, with a verdict for each mail")
        if connection.incoming.named is not None and connection.protocol.terms.lmtp:
            connection.settled_each(verdicts)
        else:
            connection.settled(verdicts[0])

    cdef int released(self) except -1:
        if self.reserved:
            reserved, self.reserved = self.reserved, 0
            self.host.reserve(-reserved)
        return 0


@cython.final
cdef class SmtpConnection:
    """Lives from connect to the end of the step of `mq_smtp_in_close`. A protocol of asyncio; `host` is a `Host`.

    All stages but `mq_smtp_in_message` get the same message, whose `mime` and `json` are those of the transaction. One
    step runs at a time; what the client sends meanwhile waits.
    """

    def __cinit__(self, Host host not None, str peer=None):
        self.host = host
        self.peer = peer
        self.gateway = host.gateway
        self.counters = host.counters
        self.info = NOBODY  # until `connection_made`
        self.message = NOTHING_SAID
        self.dispatcher = self.gateway.dispatcher
        self.protocol = ServerProtocol(host.offered(), secure=host.implicit_tls)
        self.since = self.time()

    # What the transport calls

    def connection_made(self, transport):
        self.transport = transport
        peer = self.peer
        if peer is None:
            peername = transport.get_extra_info("peername")
            peer = peername[0] if peername else ""
        entered = self.host.enter(self, peer)
        if isinstance(entered, Rejection):
            self.is_lost = True
            transport.write(f"{entered}\r\n".encode())
            transport.close()
            return
        self.resume = self._resume
        if self.protocol.secure:
            self.count_handshake()
        if self.host.trusts_some:
            self.protocol.may_xclient = peer in self.host.xclient_from
            self.protocol.may_xforward = peer in self.host.xforward_from
        self.introduce(entered, peer, None)
        self.proceed()

    cdef int introduce(self, unsigned long long number, str peer, helo) except -1:
        """This is another client than before."""
        self.drops_all = False
        self.failed_logins = 0
        protocol = self.protocol
        self.info = new_connection(number, peer, helo, protocol.secure, protocol.authenticated, self.transport)
        id = numbered(ZEROS, number)
        self.message = new_mail(b"", {}, self.info, new_origin(b"", id, 0))
        if self.gateway.tracers is not None or self.timeline is not None:
            self.end_timeline("the client speaks for another one now")
            if self.gateway.tracers is not None:
                self.timeline = self.gateway.tracers.connected(self.info, id)
        return self.run(self.host.connect, CONNECT, ())

    def data_received(self, bytes data not None):
        cdef ServerProtocol protocol = self.protocol
        protocol.receive(data)
        if protocol.due != NOTHING or self.is_blocked:
            if protocol.buffered > MAX_BUFFERED and self.tls_task is None:
                self.pause()
            return
        self.proceed()
        if protocol.due == MESSAGE and self.info.tls and not self.is_lost:
            self.pause()  # with TLS nothing can be written any more once it is read that the client closes its side
        receiver = protocol.receiver
        if receiver is None:
            if self.reserved and protocol.due == NOTHING:  # it was refused
                self.reserve(0)
        elif max(len(receiver.text), self.reserved) > BIG and not self.reserve(len(receiver.text)):
            receiver.refuse(str(NO_ROOM))
            self.reserve(len(receiver.text))

    cdef int pause(self) except -1:
        self.is_paused = True
        self.transport.pause_reading()
        return 0

    def eof_received(self):
        """The client sends no more, but waits for its replies. Under TLS the transport closes all the same."""
        self.is_ended = True
        if self.is_lost or self.info.tls:
            return None
        if self.protocol.due == NOTHING and not self.is_blocked:
            self.proceed()
        return True

    def pause_writing(self):
        """A client that does not read its replies gets no more of them."""
        self.is_blocked = True

    def resume_writing(self):
        self.is_blocked = False
        if self.protocol.due == NOTHING:
            self.proceed()

    def connection_lost(self, error):
        """Take back what plugins hold, and run `mq_smtp_in_close`."""
        if self.is_lost or self.resume is None:
            return
        self.is_lost = True
        in_gateway = self.transaction is not None
        self.cancel_steps()
        if self.timeline is not None and not in_gateway:  # else that ends it
            self.end_timeline("the client is gone")
        self.protocol.receiver = None  # what it has must not be there for as long as plugins hold `mq_smtp_in_close`
        self.forget_message()
        # What leads back here goes now, and not when garbage is collected next.
        self.resume = self.transaction = None
        self.info.transport = None
        if self.host.close.run_one(self.message, (), self._closed) is not None:
            self.host.leave(self)

    cdef int cancel_steps(self) except -1:
        """Take back what plugins hold, and do nothing about how it ends."""
        self.cancel_delayed()
        if self.is_stepping:
            self.dispatcher.cancel(self.message)
        if self.transaction is not None:
            self.transaction.cancel()
        return 0

    def _closed(self, message, outcome):
        self.host.leave(self)

    @property
    def owes_reply(self):
        """Whether the client waits for a reply."""
        return self.protocol.due != NOTHING

    # What the server calls

    cdef double time(self) noexcept:
        """What `loop.time()` gave when the loop last looked at the clock."""
        return self.dispatcher.reactor.state.uv.now(self.dispatcher.reactor.state.pointer) / 1e3

    def is_late(self, double now):
        """Whether the client keeps us waiting for too long."""
        if self.is_lost or self.protocol.due != NOTHING:
            return False
        receiver = self.protocol.receiver
        return now - self.since > self.host.timeout + (receiver.size / MIN_RATE if receiver is not None else 0.0)

    def shut_down(self):
        """Say goodbye when the transaction that is open is over; within a handshake there is no way to say it."""
        if self.tls_task is not None:
            self.tls_task.cancel()
        self.protocol.shut_down()
        if self.cancel_delayed():
            self.protocol.give_up(421, syntax.SHUTTING_DOWN)
        self.proceed()

    def end(self, int code, str text not None):
        """Close the connection with this reply, unless a message is being stored: then its client must learn of that."""
        if self.is_lost:
            self.dispatcher.cancel(self.message)  # a plugin holds it at `mq_smtp_in_close`
        elif self.transaction is not None and self.transaction.committing:
            self.protocol.shut_down()
        elif self.tls_task is not None:
            self.tls_task.cancel()
        elif self.protocol.closed:
            self.transport.abort()  # it does not take the reply
        else:
            self.protocol.give_up(code, text)
            self.cancel_steps()
            self.flush()

    def abandon(self):
        """Close the connection without a word, now."""
        self.transport.abort()
        self.connection_lost(None)

    # Steps

    cdef int proceed(self) except -1:
        """Go on with what has been received, as far as it goes."""
        if self.is_proceeding or self.is_lost:
            return 0
        self.is_proceeding = True
        try:
            while (payload := self.protocol.next_payload()) is not None:
                self.begin_stage(payload)
        finally:
            self.is_proceeding = False
        return self.flush()

    cdef int flush(self) except -1:
        out = self.protocol.take_output()
        if self.protocol.faults is not None:
            self.note_faults()
        if self.transport.is_closing():
            return 0  # we closed it, or the client did, which will be told to us in a moment
        if out:
            self.since = self.time()
            self.transport.write(out)
        if self.protocol.closed or self.is_ended and self.protocol.due == NOTHING and not self.is_blocked:
            self.transport.close()
        elif self.is_paused and self.protocol.due == NOTHING:
            self.is_paused = False
            self.transport.resume_reading()
        return 0

    cdef int run(self, Hook hook, Stage stage, tuple arguments) except -1:
        """Run the step of a stage, and then finish that."""
        if self.message.refusal is not None:
            self.message.refusal = self.message.rejected_by = None
        self.message.discarded = False
        self.stage = stage
        outcome = (hook.run_one(self.message, arguments, self.resume) if self.timeline is None
                   else self.run_seen(hook, arguments))
        if outcome is not None:
            return self.end_stage(outcome)
        self.is_stepping = True
        return 0

    def _resume(self, message, outcome):
        """A plugin has given back what it held."""
        self.is_stepping = False
        if not (self.is_lost or self.protocol.closed):
            self.end_stage(outcome)
            self.proceed()

    cdef bint answer(self, outcome, failed=UNAVAILABLE) except -1:
        """Tell the client how a step ended; whether it ended well."""
        rejection = failed if outcome is FAIL else self.message.refusal
        if rejection is None:
            self.protocol.accept()
            self.counters.numbers[<int>self.stage] += 1
            if self.timeline is not None:
                self.note_replies(1)
            return True
        if self.stage <= SECURE:
            self.counters.refused["plugin"] += 1
        code, text = rejection
        self.protocol.reject(code, text)
        self.note(rejection, outcome)
        if self.timeline is not None and self.stage != DATA:  # what ends with the transaction
            self.note_replies(1)
            if self.stage <= SECURE or self.stage == SENDER:  # nothing follows
                self.end_timeline(None)
        return False

    cdef int note(self, rejection, outcome) except -1:
        """A step is answered with this refusal: count it, log it, and tell plugins."""
        message = self.message
        code, text = rejection
        self.gateway.refusals.note(
            STAGES[self.stage], code, text, client=self.info.peer, helo=self.protocol.helo,
            sender=address_in(message.known, "envelope") if self.stage >= SENDER else None,
            recipient=self.address if self.stage == RECIPIENT else None,
            plugin=message.rejected_by,
            error=describe(message.error) if outcome is FAIL else None)
        if outcome is not FAIL:
            self.gateway.refusals.tell(message)
        return 0

    cdef int count_handshake(self) except -1:
        """TLS has begun."""
        session = self.transport.get_extra_info("ssl_object")
        self.counters.handshakes[session.version() or "unknown" if session is not None else "unknown", "ok"] += 1
        return 0

    # For whoever wants to see a transaction

    cdef object run_seen(self, Hook hook, tuple arguments):
        """`hook.run`, in a transaction that is seen."""
        about = arguments[0] if self.stage == SENDER or self.stage == RECIPIENT else None
        return self.timeline.run(hook, self.message, arguments, self.resume, about)

    cdef int begin_timeline(self) except -1:
        """At MAIL."""
        tracers = self.gateway.tracers
        if self.timeline is not None and self.timeline.is_transaction:
            self.end_timeline("the client began again")
        if tracers is not None:
            self.timeline = tracers.begin(self.timeline, self.info, self.message.origin.id)
        if self.timeline is not None:
            self.timeline.is_transaction = True
        return 0

    cdef int note_replies(self, Py_ssize_t count) except -1:
        """So many were just put behind what is to be sent."""
        cdef bytes out = self.protocol.out
        cdef list lines = [] if out is None else out.decode(errors="replace").splitlines()
        cdef Py_ssize_t first = len(lines)
        while count > 0 and first > 0:
            first -= 1
            while first > 0 and (<str>lines[first - 1])[3:4] == "-":
                first -= 1
            count -= 1
        self.timeline.replied("\n".join(lines[first:]))
        return 0

    cdef int end_timeline(self, str reason) except -1:
        timeline, self.timeline = self.timeline, None
        if timeline is not None:
            timeline.end(reason)
        return 0

    cdef int end_transaction(self) except -1:
        """A message is replied to."""
        if self.timeline is not None:
            named = self.incoming.named
            self.note_replies(len(named) if self.protocol.terms.lmtp and named is not None else 1)
            self.end_timeline(None)
        self.counters.transactions.count(self.time() - self.begun)
        return self.forget_message()

    cdef int note_faults(self) except -1:
        """The same for what the protocol refused by itself."""
        sender = address_in(self.message.known, "envelope") if self.protocol.in_transaction else None
        for stage, address, reply in self.protocol.take_faults():
            self.gateway.refusals.note(
                stage, int(reply[:3]), reply[4:], client=self.info.peer, helo=self.protocol.helo,
                sender=address if stage == "mailfrom" else sender, recipient=address if stage == "rcptto" else None)
        return 0

    # Stages

    cdef int begin_stage(self, payload) except -1:
        cdef int due = self.protocol.due
        if due == MAIL_FROM:
            self.mail_from(payload)
        elif due == RCPT_TO:
            self.rcpt_to(payload)
        elif due == START_TLS:
            self.start_tls()
        elif due == AUTHENTICATE:
            self.info.helo = self.protocol.helo
            self.info.authenticated = False
            self.run(self.host.authenticate, LOGIN, payload)
        elif due == GREETING:
            self.begin_again(payload)
        else:
            self.take_message(<DataReceiver?>payload)
        return 0

    cdef int end_stage(self, outcome) except -1:
        """The step of a stage has ended."""
        if self.message.discarded and outcome is not FAIL:
            self.discard()
        if self.stage == SENDER:
            self.answer(outcome)
        elif self.stage == RECIPIENT:
            if self.answer(outcome):
                self.incoming.add(address_in(self.message.known, "recipient") or self.address, self.protocol.dsn)
        elif self.stage == DATA:
            self.after_data(outcome)
        elif self.stage == LOGIN:
            self.after_login(outcome)
        elif self.stage == CONNECT and self.info.tls and outcome is not FAIL and self.message.refusal is None:
            self.run(self.host.secure, SECURE, ())
        else:
            self.answer(outcome, GO_AWAY)
        return 0

    cdef int discard(self) except -1:
        """A plugin discards what comes for this recipient, in this transaction, or in this connection."""
        if self.stage == RECIPIENT:
            self.incoming.drop(address_in(self.message.known, "recipient") or self.address)
        elif self.stage == SENDER or self.stage == DATA:
            self.incoming.drops = True
        else:
            self.drops_all = True
        return 0

    cdef int begin_again(self, dict known) except -1:
        """The client speaks for another one, by XCLIENT. For plugins its own connection is over, and that one's begins."""
        peer = (known["addr"] or "") if "addr" in known else self.info.peer
        self.host.close.run_one(self.message, (), _forget)
        entered = self.host.reenter(self, peer)
        if isinstance(entered, Rejection):
            code, text = entered
            self.protocol.give_up(code, text)
            return 0
        self.traced_helo = None  # the trace names the peer
        return self.introduce(entered, peer, known.get("helo"))

    cdef int start_tls(self) except -1:
        self.flush()
        self.transport.pause_reading()  # what comes next is not for us but for TLS
        self.tls_task = self.host.loop.create_task(self._shake_hands())
        self.tls_task.add_done_callback(self._after_handshake)
        return 0

    async def _shake_hands(self):
        try:
            return await self.host.loop.start_tls(
                self.transport, self, self.host.tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except OSError:  # of which no client can be told
            return None
        except Exception:
            log.exception("TLS could not begin")
            return None

    def _after_handshake(self, task):
        """However it ended, also before it began."""
        self.tls_task = None
        transport = None if task.cancelled() else task.result()
        if transport is None or self.transport.is_closing():
            self.counters.handshakes["none", "failed"] += 1
            self.abandon()
            return
        self.transport = self.info.transport = transport
        self.count_handshake()
        self.info.tls = True
        self.info.helo = None
        self.info.authenticated = False
        self.protocol.secured()
        self.run(self.host.secure, SECURE, ())
        self.proceed()

    cdef int after_login(self, outcome) except -1:
        if outcome is not FAIL and self.message.refusal is None and not self.info.authenticated:
            self.message.refusal = REFUSED_LOGIN
        if outcome is not FAIL and self.message.refusal is not None:
            return self.delay_refusal(outcome)
        if self.answer(outcome, NO_LOGIN_NOW):
            self.counters.logins["ok"] += 1
        else:
            self.counters.logins["failed"] += 1
            self.info.authenticated = False
        return 0

    cdef int delay_refusal(self, outcome) except -1:
        """The reply to a failed login waits, and with it what the client has sent behind that."""
        self.info.authenticated = False
        self.counters.logins["refused"] += 1
        self.note(self.message.refusal, outcome)
        self.failed_logins += 1
        seconds = self.host.failed_logins.count(self.info.peer, self.failed_logins, self.time())
        self.delayed = self.host.loop.call_later(seconds, self._refuse_login, self.message.refusal)
        return 0

    cdef bint cancel_delayed(self) except -1:
        """Whether there was a reply that waits."""
        if self.delayed is None:
            return False
        self.delayed.cancel()
        self.delayed = None
        return True

    def _refuse_login(self, rejection):
        self.delayed = None
        code, text = rejection
        self.protocol.reject(code, text)
        if self.timeline is not None:
            self.note_replies(1)
        self.proceed()

    cdef int mail_from(self, str address) except -1:
        self.info.helo = self.protocol.helo
        if self.info.forwarded is not self.protocol.forwarded:
            self.info = self.message.connection = for_transaction(self.info, self.protocol.forwarded)
        if self.gateway.tracers is not None or self.timeline is not None:
            self.begin_timeline()
        self.begun = self.time()
        if self.incoming is None:
            self.incoming = Incoming.__new__(Incoming)
        self.incoming.begin()
        self.message.known = {"envelope": address}
        if self.protocol.dsn:
            self.message.known["dsn"] = self.protocol.dsn
        if self.host.is_held_off:
            return self.refuse_sender(HELD_OFF)
        return self.run(self.host.mailfrom, SENDER, (address,))

    cdef int refuse_sender(self, rejection) except -1:
        """Before any step."""
        code, text = rejection
        self.protocol.reject(code, text)
        self.stage = SENDER
        self.message.rejected_by = None
        if self.timeline is not None:
            self.note_replies(1)
        return self.note(rejection, None)

    cdef int rcpt_to(self, str address) except -1:
        self.address = address
        self.message.known["recipient"] = address
        return self.run(self.host.rcptto, RECIPIENT, (address,))

    cdef int take_message(self, DataReceiver receiver) except -1:
        cdef Py_ssize_t size = len(receiver.text) - 2  # without the line end before it
        if size > BIG and not self.reserve(size):  # of what came last, or all of it came in one go
            return self.refuse_message(NO_ROOM)
        json = self.message.known
        json.pop("recipient", None)
        incoming = self.incoming
        incoming.name_each_once()
        if self.drops_all or incoming.is_for_nobody():
            return self.drop_message()
        json["recipients"] = incoming.recipients[:]
        incoming.take(receiver, self.host.names)
        try:
            incoming.received = receiver.below(self.make_trace())
        except MemoryError:
            return self.refuse_message(TOO_BIG)
        self.message.set_bytes(incoming.received)
        return self.run(self.host.data, DATA, (incoming.received,))

    cdef int drop_message(self) except -1:
        """It is accepted, and nobody gets it."""
        self.gateway.count_discarded(len(self.incoming.recipients))
        self.protocol.accept()
        self.counters.numbers[<int>DATA] += 1
        return self.end_transaction()

    cdef int refuse_message(self, rejection) except -1:
        """There is no room for it; it had no step."""
        code, text = rejection
        self.protocol.reject(code, text)
        self.stage = DATA
        self.message.rejected_by = None
        self.note(rejection, None)
        return self.end_transaction()

    cdef bytes make_trace(self):
        """The line that goes above the message; empty if none does."""
        if self.host.tracer is None:
            return b""
        if self.traced_kind != kind_of(self.protocol) or self.traced_helo is not self.protocol.helo:
            self.traced_kind = kind_of(self.protocol)
            self.traced_helo = self.protocol.helo
            self.trace = self.host.tracer.begin(self.protocol, self.info.peer)
        incoming = self.incoming
        recipient = incoming.recipients[0] if len(incoming.recipients) == 1 else None
        return self.host.tracer.line(self.trace, incoming.id, recipient, incoming.received_at)

    cdef int after_data(self, outcome) except -1:
        cdef list mails = None
        if self.incoming.drops:
            return self.drop_message()
        if outcome is not FAIL and self.message.refusal is None:
            try:
                mails = self.incoming.make_mails(self.message, self.info, self.host.names, self.host.tracer is not None,
                                                 self.protocol.utf8)
            except Exception:
                log.exception("what plugins put into the json of a mail cannot be copied")
                outcome = FAIL
        if not mails:
            self.gateway.turn_away(len(self.incoming.recipients), outcome is FAIL)
            self.answer(outcome)
            return self.end_transaction()
        if self.incoming.dropped is not None:
            self.gateway.count_discarded(len(self.incoming.dropped))
        self.transaction = SmtpTransaction.__new__(SmtpTransaction)
        self.transaction.mails = tuple(mails)
        self.transaction.connection = self
        self.transaction.timeline = self.timeline
        self.transaction.was_offered = True
        # Whatever becomes of the client, its bytes are in memory until the gateway lets go of them.
        self.transaction.host = self.host
        self.transaction.reserved = self.reserved
        self.reserved = 0
        return self.gateway.submit(self.transaction)

    cdef int settled(self, verdict) except -1:
        """The reply to a message is known."""
        transaction, self.transaction = self.transaction, None
        if self.is_lost:
            return 0
        if verdict is ACCEPTED:
            self.protocol.accept(stored_as(<Mail>transaction.mails[0]))
            self.counters.numbers[<int>DATA] += 1
        elif verdict.is_good:
            self.protocol.accept(printable(verdict.text))
            self.counters.numbers[<int>DATA] += 1
        else:
            code, text = verdict.reply
            self.protocol.reject(code, text)
        self.end_transaction()
        return self.proceed()

    cdef int settled_each(self, list verdicts) except -1:
        """The replies to a message of LMTP are known, one for each mail; whoever was named twice gets his twice."""
        transaction, self.transaction = self.transaction, None
        if self.is_lost:
            return 0
        cdef dict replies = {}
        for mail, verdict in zip(transaction.mails, verdicts):
            if verdict is ACCEPTED:
                reply = 250, stored_as(<Mail>mail)
            else:
                reply = (250, printable(verdict.text)) if verdict.is_good else verdict.reply
            replies[(<Mail>mail).origin.recipient] = reply
            self.counters.numbers[<int>DATA] += verdict.is_good
        cdef list each = []
        for recipient in self.incoming.named:
            each.append(replies.get(recipient, (250, "")))  # of those for whom it was discarded there is no mail
        self.protocol.answer_each(each)
        self.end_transaction()
        return self.proceed()

    cdef int forget_message(self) except -1:
        if self.incoming is not None:
            self.incoming.received = b""
        self.message.set_bytes(b"")
        self.reserve(0)
        return 0

    cdef bint reserve(self, Py_ssize_t size) except -1:
        """Have so many octets of a message in memory; whether there is room for them."""
        cdef Py_ssize_t more = size - self.reserved
        self.reserved = size
        return more == 0 or self.host.reserve(more)


def _forget(message, outcome):
    """How a step ended that nothing depends on."""


cdef inline str stored_as(Mail mail):
    return f"stored as {mail.origin.id}"
