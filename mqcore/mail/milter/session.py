"""One connection of a mail server: what it asks becomes steps of plugins, and their outcomes become answers."""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ... import CONTINUE, FAIL, Hook, Outcome
from ...milter.events import Abort, Connect, Event, Goodbye, Helo, MailFrom, Message, RcptTo
from ...milter.packets import MilterError
from ...milter.protocol import MilterProtocol
from .._mail import Mail
from ..origin import Origin
from ..refusals import describe
from ..verdicts import UNAVAILABLE, Rejection, Verdict
from .connection import MilterConnection
from .errors import Unsayable
from .transaction import MilterTransaction, Recipient, find_changes

if TYPE_CHECKING:
    from .server import MilterServer

MAX_BUFFERED = 1 << 20
"""Octets that are read ahead while a step waits."""
PROGRESS = 5.0
"""Seconds from one word that we are still at it to the next: a server waits for 10 at least."""
UNTOLD = 8.0
"""Seconds that a step may take where the server cannot be told so: Sendmail waits for 10, unless it is told otherwise."""

log = logging.getLogger(__name__)

Then: TypeAlias = Callable[[Outcome], None]


class Session(asyncio.Protocol):
    """Of a server's connection to us; of its clients one after another. All stages but `mq_smtp_in_message` get the same
    message, as with SMTP."""

    def __init__(self, server: MilterServer) -> None:
        self._server = server
        self._gateway = server.gateway
        self.protocol = MilterProtocol(server.wanted(), server.max_message)
        self.is_lost = False
        self.since = server.loop.time()
        """When the server last said something."""
        self._connection: MilterConnection | None = None
        self._message = NOTHING_SAID
        self._stage = "connect"
        self._step: Mail | None = None
        self._then: Then | None = None
        self._transaction: MilterTransaction | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_proceeding = False
        self._is_paused = False
        self._drops_all = False
        self._begin_transaction("")

    def _begin_transaction(self, sender: str) -> None:
        self._sender = sender
        self._recipients: list[Recipient] = []
        self._dropped: list[bytes] = []
        self._drops = False
        self._content: Message | None = None
        self._mime = b""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        end = transport.get_extra_info("socket")
        if end is not None and end.family != socket.AF_UNIX:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # servers that died do not say so
        self._server.enter(self)

    def data_received(self, data: bytes) -> None:
        self.protocol.receive(data)
        self._proceed()
        if self.protocol.due and self.protocol.buffered > MAX_BUFFERED:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self._end_client()
        self._server.leave(self)

    # What the server of the source calls

    @property
    def is_idle(self) -> bool:
        """Whether there is no transaction, and no answer is owed."""
        return not (self.protocol.due or self.protocol.in_transaction)

    def close(self) -> None:
        """Let go of a server that asks nothing now."""
        self._transport.close()

    def abandon(self) -> None:
        self._transport.abort()
        self.connection_lost(None)

    # Events

    def _proceed(self) -> None:
        if self._is_proceeding or self.is_lost:
            return
        self._is_proceeding = True
        try:
            while not self.is_lost and (event := self.protocol.next_event()) is not None:
                self.since = self._server.loop.time()
                self._handle(event)
        except MilterError as error:
            log.warning("a connection is closed that does not speak the milter protocol: %s", error)
            self.abandon()
            return
        finally:
            self._is_proceeding = False
        self._flush()

    def _flush(self) -> None:
        if self.is_lost:
            return
        if output := self.protocol.take_output():
            self._transport.write(output)
        if self.protocol.is_ended or (self._server.is_stopping and self.is_idle):
            self._transport.close()
        elif self._is_paused and not self.protocol.due:
            self._is_paused = False
            self._transport.resume_reading()

    def _handle(self, event: Event) -> None:
        match event:
            case Connect():
                self._connect(event)
            case Helo():
                self._helo(event)
            case MailFrom():
                self._mail_from(event)
            case RcptTo():
                self._rcpt_to(event)
            case Message():
                self._take_message(event)
            case Abort():
                self._abort()
            case Goodbye():
                self._end_client()

    def _connect(self, event: Connect) -> None:
        self._end_client()
        number, id = self._server.next_number()
        self._connection = MilterConnection(number, event.peer)
        self._connection.session = self
        self._drops_all = False
        self._message = self._new_message(id)
        self._run("connect", self._server.connect, ())

    def _new_message(self, id: str) -> Mail:
        return Mail(b"", json={}, connection=self._connection, origin=Origin(b"", id, comes_again=False))

    def _renew_message(self) -> None:
        known, self._message = self._message.json, self._new_message(self._message.origin.id)
        self._message.json = known

    def _helo(self, event: Helo) -> None:
        if self._connection is None:
            return self._nobody()
        self._connection.helo = event.name
        if event.tls:
            self._connection.tls = True
            return self._run("secure", self._server.secure, ())
        if self.protocol.due:
            self.protocol.proceed()
        return None

    def _mail_from(self, event: MailFrom) -> None:
        if self._connection is None:
            return self._nobody()
        self._begin_transaction(event.address)
        self._connection.authenticated = self.protocol.macro(b"auth_authen") is not None
        self._message.json = {"envelope": event.address}
        if event.parameters:
            self._message.json["mail_parameters"] = event.parameters
        self._note_queue_id()
        return self._run("mailfrom", self._server.mailfrom, (event.address,))

    def _note_queue_id(self) -> None:
        """Sendmail has it from MAIL on, Postfix from DATA on."""
        if (id := self.protocol.macro(b"i")) is not None:
            self._message.json["queue_id"] = id

    def _rcpt_to(self, event: RcptTo) -> None:
        if self._connection is None:
            return self._nobody()
        self._message.json["recipient"] = event.address
        return self._run("rcptto", self._server.rcptto, (event.address,), partial(self._after_recipient, event))

    def _after_recipient(self, event: RcptTo, outcome: Outcome) -> None:
        message = self._message
        wanted = message.recipient or event.address
        if outcome is not FAIL and message.discarded:
            self._dropped.append(event.raw)
        elif outcome is not FAIL and message.rejection is None:
            self._recipients.append(Recipient(wanted, event.raw, event.address))
        self._answer(outcome)

    def _take_message(self, event: Message) -> None:
        if self._connection is None:
            return self._nobody()
        message, json = self._message, self._message.json
        json.pop("recipient", None)
        self._note_queue_id()
        if self._drops or self._drops_all or (self._dropped and not self._recipients):
            return self._drop_message()
        if not self._recipients or not self.protocol.wanted.content:  # then the content did not come either
            return self.protocol.proceed()
        json["recipients"] = [one.address for one in self._recipients]
        self._content = event
        message.mime = self._mime = event.mime
        return self._run("data", self._server.data, (self._mime,), self._after_data)

    def _drop_message(self) -> None:
        """It is accepted, and nobody gets it."""
        self._gateway.count_discarded(len(self._recipients) + len(self._dropped))
        self.protocol.discard()

    def _after_data(self, outcome: Outcome) -> None:
        message = self._message
        if outcome is not FAIL and message.discarded:
            return self._drop_message()
        mails: list[Mail] = []
        if outcome is not FAIL and message.rejection is None:
            try:
                mails = self._make_mails()
            except Exception:
                log.exception("what plugins put into the json of a mail cannot be copied")
                outcome = FAIL
        if not mails:
            self._gateway.turn_away(len(self._recipients), outcome is FAIL)
            return self._answer(outcome)
        self._transaction = MilterTransaction(self, mails, self._recipients)
        self._gateway.offer([self._transaction])
        if self._transaction is not None:
            self._wait()
        return None

    def _make_mails(self) -> list[Mail]:
        """One for each recipient, with all that the plugins know so far."""
        known, mails = self._message.json, list[Mail]()
        known.pop("recipients", None)  # each of them has one
        envelope, now = self._message.envelope or "", time.time()
        for recipient in self._recipients:
            number, id = self._server.next_number()
            origin = Origin(self._mime, id, number, envelope, received=now, recipient=recipient.address, comes_again=False)
            mail = Mail(self._message.mime, connection=self._connection, origin=origin)
            mail.json = copy.deepcopy(known) if mails else known.copy()
            mail.json["recipient"] = recipient.address
            mails.append(mail)
        return mails

    def _abort(self) -> None:
        self._cancel()
        self._begin_transaction("")

    def _nobody(self) -> None:
        raise MilterError("it speaks of a client that did not connect")

    def _end_client(self) -> None:
        """The client of the server is gone."""
        self._cancel()
        if self._connection is None:
            return
        message, self._message = self._message, NOTHING_SAID
        self._connection = None
        message.mime = b""
        self._server.close.run(message)

    # Steps

    def _run(self, stage: str, hook: Hook, arguments: tuple[Any, ...], then: Then | None = None) -> None:
        """Run the step of a stage, and then answer."""
        self._stage, self._then = stage, then or self._answer
        if self._message.discarded:  # by a plugin, at a stage before
            self._renew_message()
        self._message.rejection = None
        if not self.protocol.due:  # plugins that came after this session began see the next one
            return self._then(CONTINUE)
        outcome = hook.run(self._message, *arguments, done=self._resume)
        if outcome is not None:
            return self._then(outcome)
        self._step = self._message
        self._wait()
        return None

    def _resume(self, message: Mail, outcome: Outcome) -> None:
        """A plugin has given back what it held."""
        if self._step is not message or self._then is None:
            return
        self._end_waiting()
        self._step = None
        if not self.is_lost:
            self._then(outcome)
            self._proceed()

    def _answer(self, outcome: Outcome) -> None:
        """Tell the server how a step ended."""
        message = self._message
        if outcome is not FAIL and message.rejection is None:
            if message.discarded and self._stage in ("connect", "secure"):
                self._drops_all = True
            elif message.discarded and self._stage == "mailfrom":
                self._drops = True
            if self.protocol.due:
                self.protocol.proceed()
            return
        if outcome is FAIL:
            rejection = Rejection(421 if self._stage == "connect" else 451, UNAVAILABLE.text)
        else:
            assert message.rejection is not None
            rejection = message.rejection
        self._note(rejection, outcome)
        self.protocol.refuse(*rejection)

    def _note(self, rejection: Rejection, outcome: Outcome) -> None:
        message, connection = self._message, self._connection
        assert connection is not None
        code, text = rejection
        self._gateway.refusals.note(
            self._stage,
            code,
            text,
            client=connection.peer,
            helo=connection.helo,
            sender=message.envelope,
            recipient=message.recipient if self._stage == "rcptto" else None,
            plugin=message.rejected_by,
            error=describe(message.error) if outcome is FAIL else None,
        )
        if outcome is not FAIL:
            self._gateway.refusals.tell(message)

    def _cancel(self) -> None:
        """Take back what plugins hold, and do nothing about how it ends."""
        self._end_waiting()
        step, self._step, self._then = self._step, None, None
        if step is not None:
            self._renew_message()  # that one may be in its step yet
            self._gateway.dispatcher.cancel(step)
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.cancel()

    def _wait(self) -> None:
        """From now on the server waits for us."""
        call_later = self._server.loop.call_later
        if self.protocol.takes_progress:
            self._timer = call_later(PROGRESS, self._tell_progress)
        else:
            self._timer = call_later(UNTOLD, self._end_step)

    def _tell_progress(self) -> None:
        self.protocol.progress()
        self._flush()
        self._wait()

    def _end_step(self) -> None:
        """Before the server gives us up, and does without us until its client is gone."""
        assert self._step is not None and self._then is not None
        log.warning(
            "a plugin held the message at %s for %g s, and this server cannot be told to wait for longer", self._stage, UNTOLD
        )
        then = self._then
        self._cancel()
        then(FAIL)
        self._proceed()

    def _end_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What becomes of a message

    def prepare_answer(self, mails: Sequence[Mail]) -> None:
        """These, of the transaction that is open, are to be delivered. Raises Unsayable."""
        transaction, content = self._transaction, self._content
        if transaction is None or content is None or mails[0] not in transaction.recipients:  # the server took it back
            return
        changes = find_changes(mails, transaction, self._mime, self._sender, self._dropped)
        try:
            transaction.answer = self.protocol.encode(content, changes)
        except ValueError as error:
            raise Unsayable(str(error)) from error

    def settled(self, transaction: MilterTransaction, verdict: Verdict) -> None:
        """What the gateway says of it, of all its mails: those that were refused alone are where failed mails are."""
        if self._transaction is not transaction:
            return
        self._transaction = None
        self._end_waiting()
        self._begin_transaction("")
        if not verdict.is_good:
            self.protocol.refuse(*verdict.reply)
        elif transaction.answer is None:  # a sink of ours has it, or nobody is to get it
            self.protocol.discard()
        else:
            self.protocol.finish(transaction.answer)
        self._proceed()


NOTHING_SAID = Mail(b"", json={})
