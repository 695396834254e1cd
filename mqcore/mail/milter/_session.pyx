"""One connection of a mail server: what it asks becomes steps of plugins, and their outcomes become answers."""

import copy
import logging
from types import MappingProxyType

cimport cython
from cpython.time cimport time as wall_time
from ..._dispatcher cimport Dispatcher
from ..._hook cimport Hook
from ...milter._protocol cimport (
    ABORT, CONNECT, HELO, MAIL_FROM, MESSAGE, NONE, RCPT_TO, Content, Kind, MilterProtocol
)
from .._gateway cimport Gateway
from .._mail cimport Connection, Mail, address_in, new_mail
from .._origin cimport new_origin
from .._transaction cimport Transaction
from ._host cimport MilterHost

from ... import CONTINUE, FAIL
from ...milter.packets import MilterError, packet
from ..refusals import describe
from ..verdicts import ACCEPTED, UNAVAILABLE, Rejection
from . import timeouts
from .errors import Unsayable
from .transaction import Recipient, find_changes

cdef enum:
    MAX_BUFFERED = 1 << 20  # octets that are read ahead while a step waits

cdef enum Stage:
    AT_CONNECT
    AT_SECURE
    AT_SENDER
    AT_RECIPIENT
    AT_DATA

log = logging.getLogger("mqcore.mail.milter.session")

cdef tuple STAGES = ("connect", "secure", "mailfrom", "rcptto", "data")
cdef Mail NOTHING_SAID = Mail(b"", json={})
cdef bytes PROCEED = packet(b"c")

cdef class Session


@cython.final
cdef class MilterConnection(Connection):
    """The client's connection to the server, as the server tells of it. `transport` is None: a client is talked to by its
    server. `session`: the server's connection to us."""
    cdef readonly Session session

    @property
    def macros(self):
        """What the server says beside, by the names of its macros without braces, as `{"i": "4XyZ"}`:
        of the connection, and of the message as far as it has come."""
        return MappingProxyType({} if self.session is None else self.session.protocol.macros)


@cython.final
cdef class MilterTransaction(Transaction):
    """A message that a server asks about: one mail for each recipient. The server gets one answer, which may take recipients
    away."""
    cdef list takers        # for each mail what a Recipient is made of
    cdef bytes answer       # what the server is to be told if all goes well; None if nobody is to get anything
    cdef Session session

    @property
    def recipients(self):
        """Each mail's recipient."""
        return {mail: Recipient(*taker) for mail, taker in zip(self.mails, self.takers, strict=True)}

    cpdef object settle(self, list verdicts):
        session, self.session = self.session, None
        if session is None:
            raise RuntimeError("the gateway settles this, once")
        session.settled(self, verdicts[0])


@cython.final
cdef class Session:
    """Of a server's connection to us; of its clients one after another. A protocol of asyncio.

    All stages but `mq_smtp_in_message` get the same message, as with SMTP.

    `since`: when the server last said something, whole.
    """
    cdef MilterHost host
    cdef Gateway gateway
    cdef Dispatcher dispatcher
    cdef object transport
    cdef readonly MilterProtocol protocol
    cdef readonly double since
    cdef readonly bint is_lost
    cdef MilterConnection connection
    cdef Mail message
    cdef Mail step              # whose step waits for a plugin; None if none does
    cdef object resume          # `_resume`, made once
    cdef object timer
    cdef MilterTransaction transaction
    cdef Stage stage
    cdef bint is_proceeding
    cdef bint is_paused
    cdef bint drops_all         # a plugin discards all that this client sends
    cdef bint drops             # or all of this transaction
    cdef str sender             # None outside of a transaction, and so all below
    cdef list recipients
    cdef list dropped           # as the server knows them; None if there are none
    cdef Content content        # until the server was answered

    def __cinit__(self, MilterHost host not None):
        self.host = host
        self.gateway = host.gateway
        self.dispatcher = host.dispatcher
        self.protocol = MilterProtocol(host.find_wanted(), host.max_message)
        self.since = self.time()
        self.message = NOTHING_SAID

    cdef int forget_transaction(self) except -1:
        self.sender = None
        self.recipients = self.dropped = None
        self.drops = False
        self.content = None
        return 0

    cdef double time(self) noexcept:
        """What `loop.time()` gave when the loop last looked at the clock."""
        return self.dispatcher.reactor.state.uv.now(self.dispatcher.reactor.state.pointer) / 1e3

    # What the transport calls

    def connection_made(self, transport):
        self.transport = transport
        self.resume = self._resume
        self.host.enter(self)

    def data_received(self, bytes data not None):
        self.protocol.receive(data)
        self.proceed()
        if self.protocol.due and self.protocol.waiting() > MAX_BUFFERED:
            self.is_paused = True
            self.transport.pause_reading()

    def eof_received(self):
        """The transport closes."""

    def pause_writing(self):
        """A server reads its answers: it waits for them."""

    def resume_writing(self):
        pass

    def connection_lost(self, error):
        if self.is_lost:
            return
        self.is_lost = True
        self.end_client()
        self.resume = None  # which leads back here
        self.host.leave(self)

    # What the server that we are calls

    @property
    def is_idle(self):
        """Whether there is no transaction, and no answer is owed."""
        return not (self.protocol.due or self.protocol.in_transaction)

    def close(self):
        """Let go of a server that asks nothing now."""
        self.transport.close()

    def abandon(self):
        """Break it off."""
        self.transport.abort()
        self.connection_lost(None)

    # Events

    cdef int proceed(self) except -1:
        if self.is_proceeding or self.is_lost:
            return 0
        cdef Kind kind
        self.is_proceeding = True
        try:
            while not self.is_lost:
                kind = self.protocol.next_kind()
                if kind == NONE:
                    break
                self.since = self.time()
                self.handle(kind)
        except MilterError as error:
            log.warning("a connection is closed that does not speak the milter protocol: %s", error)
            self.abandon()
            return 0
        finally:
            self.is_proceeding = False
        return self.flush()

    cdef int flush(self) except -1:
        if self.is_lost:
            return 0
        output = self.protocol.take_output()
        if output:
            self.transport.write(output)
        if self.protocol.is_ended or (self.host.is_stopping and self.is_idle):
            self.transport.close()
        elif self.is_paused and not self.protocol.due:
            self.is_paused = False
            self.transport.resume_reading()
        return 0

    cdef int handle(self, Kind kind) except -1:
        cdef str address
        if kind == CONNECT:
            self.connect(self.protocol.text)
        elif kind == ABORT:
            self.cancel()
            self.forget_transaction()
        elif kind <= MESSAGE:
            if self.connection is None:
                raise MilterError("it speaks of a client that did not connect")
            if kind == HELO:
                self.helo()
            elif kind == MAIL_FROM:
                self.mail_from()
            elif kind == RCPT_TO:
                address = self.protocol.text
                self.message.known["recipient"] = address
                self.run(AT_RECIPIENT, (address,))
            else:
                self.take_message(self.protocol.content)
        else:
            self.end_client()
        return 0

    cdef int connect(self, str peer) except -1:
        self.end_client()
        cdef unsigned long long number = self.host.names.take(1)
        cdef MilterConnection connection = MilterConnection.__new__(MilterConnection)
        connection.id = number
        connection.peer = peer
        connection.data = {}
        connection.session = self
        self.connection = connection
        self.drops_all = False
        self.message = self.new_message(self.host.names.name(number))
        return self.run(AT_CONNECT, ())

    cdef Mail new_message(self, id):
        return new_mail(b"", {}, self.connection, new_origin(b"", id, 0))

    cdef int renew_message(self) except -1:
        known = self.message.known
        self.message = self.new_message(self.message.origin.id)
        self.message.known = known
        return 0

    cdef int helo(self) except -1:
        self.connection.helo = self.protocol.text
        if self.protocol.tls_began:
            self.connection.tls = True
            return self.run(AT_SECURE, ())
        if self.protocol.due:
            self.protocol.proceed()
        return 0

    cdef int mail_from(self) except -1:
        cdef str address = self.protocol.text
        self.forget_transaction()
        self.sender = address
        self.recipients = []
        self.connection.authenticated = self.protocol.said.find(b"auth_authen") is not None
        self.message.known = {"envelope": address}
        if self.protocol.parameters is not None:
            self.message.known["mail_parameters"] = self.protocol.parameters
        self.note_queue_id()
        return self.run(AT_SENDER, (address,))

    cdef int note_queue_id(self) except -1:
        """Sendmail has it from MAIL on, Postfix from DATA on."""
        id = self.protocol.said.find(b"i")
        if id is not None:
            self.message.known["queue_id"] = id
        return 0

    cdef int after_recipient(self, outcome) except -1:
        cdef str address = self.protocol.text  # which comes next when this one was answered
        if outcome is not FAIL and self.message.discarded:
            if self.dropped is None:
                self.dropped = []
            self.dropped.append(self.protocol.raw)
        elif outcome is not FAIL and self.message.refusal is None:
            wanted = address_in(self.message.known, "recipient") or address
            self.recipients.append((wanted, self.protocol.raw, address))
        return self.answer(outcome)

    cdef int take_message(self, Content content) except -1:
        message = self.message
        message.known.pop("recipient", None)
        self.note_queue_id()
        if self.drops or self.drops_all or (self.dropped is not None and not self.recipients):
            return self.drop_message()
        if not self.recipients or not self.protocol.wanted.content:  # then the content did not come either
            return self.protocol.proceed()
        message.known["recipients"] = [address for address, _, _ in self.recipients]
        self.content = content
        message.set_bytes(content.mime)
        return self.run(AT_DATA, (content.mime,))

    cdef int drop_message(self) except -1:
        """It is accepted, and nobody gets it."""
        self.gateway.count_discarded(len(self.recipients) + (0 if self.dropped is None else len(self.dropped)))
        return self.protocol.discard()

    cdef int after_data(self, outcome) except -1:
        message = self.message
        if outcome is not FAIL and message.discarded:
            return self.drop_message()
        cdef list mails = []
        if outcome is not FAIL and message.refusal is None:
            try:
                mails = self.make_mails()
            except Exception:
                log.exception("what plugins put into the json of a mail cannot be copied")
                outcome = FAIL
        if not mails:
            self.gateway.turn_away(len(self.recipients), outcome is FAIL)
            return self.answer(outcome)
        cdef MilterTransaction transaction = MilterTransaction.__new__(MilterTransaction)
        transaction.mails = tuple(mails)
        transaction.takers = self.recipients
        transaction.session = self
        self.transaction = transaction
        self.gateway.submit(transaction)
        if self.transaction is not None:
            self.wait()
        return 0

    cdef list make_mails(self):
        """One for each recipient, with all that the plugins know so far."""
        cdef list mails = []
        known = self.message.known
        known.pop("recipients", None)  # each of them has one
        envelope = address_in(known, "envelope") or ""
        cdef double now = wall_time()
        cdef bytes mime = self.message.whole()
        cdef unsigned long long number = self.host.names.take(len(self.recipients))
        for address, _, _ in self.recipients:
            origin = new_origin(self.content.mime, self.host.names.name(number), number, envelope, now, address)
            number += 1
            json = copy.deepcopy(known) if mails else known.copy()
            json["recipient"] = address
            mails.append(new_mail(mime, json, self.connection, origin))
        return mails

    cdef int end_client(self) except -1:
        """The client of the server is gone."""
        self.cancel()
        if self.connection is None:
            return 0
        message = self.message
        self.message = NOTHING_SAID
        self.connection = None
        message.set_bytes(b"")
        self.host.close.run_one(message, (), None)
        return 0

    # Steps

    cdef Hook hook(self):
        """Of the stage."""
        if self.stage == AT_SENDER:
            return self.host.mailfrom
        if self.stage == AT_RECIPIENT:
            return self.host.rcptto
        if self.stage == AT_DATA:
            return self.host.data
        return self.host.secure if self.stage == AT_SECURE else self.host.connect

    cdef int run(self, Stage stage, tuple arguments) except -1:
        """Run the step of a stage, and then answer."""
        self.stage = stage
        if self.message.discarded:  # by a plugin, at a stage before
            self.renew_message()
        if self.message.refusal is not None:
            self.message.rejection = None
        if not self.protocol.due:  # plugins that came after this session began see the next one
            return self.end_stage(CONTINUE)
        outcome = self.hook().run_one(self.message, arguments, self.resume)
        if outcome is not None:
            return self.end_stage(outcome)
        self.step = self.message
        return self.wait()

    cdef int end_stage(self, outcome) except -1:
        if self.stage == AT_RECIPIENT:
            return self.after_recipient(outcome)
        return self.after_data(outcome) if self.stage == AT_DATA else self.answer(outcome)

    def _resume(self, message, outcome):
        """A plugin has given back what it held."""
        if self.step is not message or message is None:
            return
        self.end_waiting()
        self.step = None
        if not self.is_lost:
            self.end_stage(outcome)
            self.proceed()

    cdef int answer(self, outcome) except -1:
        """Tell the server how a step ended."""
        message = self.message
        if outcome is not FAIL and message.refusal is None:
            if message.discarded and self.stage <= AT_SECURE:
                self.drops_all = True
            elif message.discarded and self.stage == AT_SENDER:
                self.drops = True
            if self.protocol.due:
                self.protocol.proceed()
            return 0
        rejection = message.refusal
        if outcome is FAIL:
            rejection = Rejection(421 if self.stage == AT_CONNECT else 451, UNAVAILABLE.text)
        self.note(rejection, outcome)
        code, text = rejection
        return self.protocol.refuse(code, text)

    cdef int note(self, rejection, outcome) except -1:
        message = self.message
        code, text = rejection
        self.gateway.refusals.note(
            STAGES[<int>self.stage], code, text, client=self.connection.peer, helo=self.connection.helo,
            sender=message.envelope, recipient=message.recipient if self.stage == AT_RECIPIENT else None,
            plugin=message.rejected_by, error=describe(message.error) if outcome is FAIL else None)
        if outcome is not FAIL:
            self.gateway.refusals.tell(message)
        return 0

    cdef int cancel(self) except -1:
        """Take back what plugins hold, and do nothing about how it ends."""
        self.end_waiting()
        step = self.step
        self.step = None
        if step is not None:
            self.renew_message()  # that one may be in its step yet
            self.dispatcher.cancel(step)
        transaction = self.transaction
        self.transaction = None
        if transaction is not None:
            transaction.cancel()
        return 0

    cdef int wait(self) except -1:
        """From now on the server waits for us."""
        call_later = self.host.loop.call_later
        if self.protocol.takes_progress:
            self.timer = call_later(timeouts.PROGRESS, self._tell_progress)
        else:
            self.timer = call_later(timeouts.UNTOLD, self._end_step, timeouts.UNTOLD)
        return 0

    def _tell_progress(self):
        self.protocol.progress()
        self.flush()
        self.wait()

    def _end_step(self, double after):
        """Before the server gives us up, and does without us until its client is gone."""
        if self.step is None:
            raise RuntimeError("no step waits")
        log.warning("a plugin held the message at %s for %g s, and this server cannot be told to wait for longer",
                    STAGES[<int>self.stage], after)
        self.cancel()
        self.end_stage(FAIL)
        self.proceed()

    cdef int end_waiting(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    # What becomes of a message

    def prepare_answer(self, mails not None):
        """These, of the transaction that is open, are to be delivered. Raises Unsayable."""
        cdef MilterTransaction transaction = self.transaction
        if transaction is None or self.content is None or mails[0] not in transaction.mails:  # the server took it back
            return
        transaction.answer = self.simple_answer(transaction, mails)
        if transaction.answer is None:
            changes = find_changes(mails, transaction.recipients, self.content.mime, self.sender, self.dropped or ())
            try:
                transaction.answer = self.protocol.encode(self.content.message(), changes) + PROCEED
            except ValueError as error:
                raise Unsayable(str(error)) from error

    cdef bytes simple_answer(self, MilterTransaction transaction, mails):
        """Where nothing was changed but by fields on top of the one mail that there is. None: that is not so."""
        cdef Mail mail = transaction.mails[0]
        cdef dict known = mail.known if type(mail.known) is dict else None
        if len(transaction.mails) > 1 or self.dropped is not None or mail.spooled is not None or mail.hidden:
            return None
        if mail.content is not self.content.mime or known is None or "recipients" in known or "quarantine" in known:
            return None
        if address_in(known, "recipient") != transaction.takers[0][2] or address_in(known, "envelope") != self.sender:
            return None
        return self.protocol.answer_with(self.content, mail.above)

    cdef int settled(self, MilterTransaction transaction, verdict) except -1:
        """What the gateway says of it, of all its mails: those that were refused alone are where failed mails are."""
        if self.transaction is not transaction:
            return 0
        self.transaction = None
        self.end_waiting()
        self.forget_transaction()
        if verdict is not ACCEPTED and not verdict.is_good:
            code, text = verdict.reply
            self.protocol.refuse(code, text)
        elif transaction.answer is None:  # a sink of ours has it, or nobody is to get it
            self.protocol.discard()
        else:
            self.protocol.answer(transaction.answer)
        return self.proceed()
