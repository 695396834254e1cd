"""One client of the SMTP server: what it says becomes steps of plugins, and their outcomes become replies."""

from __future__ import annotations

import asyncio
import copy
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from ... import FAIL, Dispatcher, Hook, Outcome
from ..message import Connection, Mail, Origin, Rejection
from ._dialogue import Dialogue
from .events import Authenticate, MailFrom, Message, RcptTo, Service, StartTls
from .transaction import FAILED, Transaction, TransactionDesk

MAX_BUFFERED = 1 << 16
"""While a step waits, no more than about so many octets are read ahead."""
BIG = 1 << 14
"""A message counts against the server's memory from so many octets on."""
IDLE_TIMEOUT = 300.0
"""Seconds that a client has for a command (RFC 5321, 4.5.3.2.7), or for a message, and then some by its size."""
MIN_RATE = 1000
"""Octets a second that a client must manage in the long run."""
HANDSHAKE_TIMEOUT = 30.0

NO_ROOM = "452 4.3.1 too many big messages at once; try again later"
UNAVAILABLE = Rejection(421, FAILED.text)
NO_LOGIN_NOW = Rejection(454, "4.7.0 logins cannot be checked now; try again later")
REFUSED_LOGIN = Rejection(535, "5.7.8 login or password is wrong")


class Hooks(NamedTuple):
    """The hooks of the stages of a connection."""

    connect: Hook
    secure: Hook
    authenticate: Hook
    mailfrom: Hook
    rcptto: Hook
    data: Hook
    message: Hook
    close: Hook

    @classmethod
    def of(cls, dispatcher: Dispatcher) -> Hooks:
        return cls(*(dispatcher.hook(f"mq_smtp_in_{stage}") for stage in cls._fields))


class Host(Protocol):
    """What a connection asks of its server."""

    loop: asyncio.AbstractEventLoop
    dispatcher: Dispatcher
    hooks: Hooks
    service: Service
    desk: TransactionDesk
    tls: ssl.SSLContext | None
    implicit_tls: bool

    def enter(self, connection: SmtpConnection) -> int | None:
        """The number of a new connection, or None if there are too many."""
        ...

    def leave(self, connection: SmtpConnection) -> None: ...

    def keep(self, size: int) -> bool:
        """Count so many octets more (or less) of messages in memory; whether there is room for them."""
        ...

    def next_origin(self, mime: bytes, envelope: str, recipient: str) -> Origin: ...


class SmtpConnection(asyncio.Protocol):
    """Lives from connect to the end of the step of `mq_smtp_in_close`.

    All stages but `mq_smtp_in_message` get the same message, whose `mime` and `json` are those of the transaction. One
    step runs at a time; what the client sends meanwhile waits.
    """

    __slots__ = (
        "_address", "_finish", "_hooks", "_host", "_info", "_is_blocked", "_is_lost", "_is_paused",
        "_is_proceeding", "_is_stepping", "_kept", "_message", "_received", "_recipients", "_tls_task", "_transaction",
        "_transport", "dialogue", "since",
    )  # fmt: skip

    _finish: Callable[[Outcome], object]
    _info: Connection
    _message: Mail
    _transport: asyncio.Transport

    def __init__(self, host: Host) -> None:
        self._host = host
        self._hooks = host.hooks
        self.dialogue = Dialogue(host.service, secure=host.implicit_tls)
        self.since = host.loop.time()
        """When the client was last told something."""
        self._address = ""
        """The recipient that a step is about, whatever plugins make of it."""
        self._recipients: list[str] = []
        self._received = b""
        """The message as it came, whatever plugins make of it."""
        self._transaction: Transaction | None = None
        self._tls_task: asyncio.Task[None] | None = None
        self._kept = 0
        self._is_stepping = False
        self._is_proceeding = False
        self._is_paused = self._is_blocked = False
        self._is_lost = False

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        number = self._host.enter(self)
        if number is None:
            self._is_lost = True
            self._transport.write(b"421 4.3.2 too many connections; try again later\r\n")
            self._transport.close()
            return
        peer = transport.get_extra_info("peername")
        self._info = Connection(
            number, peer[0] if peer else "", tls=self.dialogue.secure, transport=self._transport
        )
        self._message = Mail(b"", connection=self._info, origin=Origin(b"", f"{number:032x}"))
        self._run(self._hooks.connect, self._after_connect)
        self._proceed()

    def data_received(self, data: bytes) -> None:
        dialogue = self.dialogue
        dialogue.receive(data)
        if dialogue.waiting or self._is_blocked:
            if dialogue.buffered > MAX_BUFFERED and self._tls_task is None:
                self._is_paused = True
                self._transport.pause_reading()
            return
        self._proceed()
        incoming = dialogue.incoming
        if incoming is None:
            if self._kept and not dialogue.waiting:  # it was refused
                self._keep(0)
        elif max(incoming.kept, self._kept) > BIG and not self._keep(incoming.kept):
            incoming.refuse(NO_ROOM)
            self._keep(incoming.kept)

    def pause_writing(self) -> None:
        """A client that does not read its replies gets no more of them."""
        self._is_blocked = True

    def resume_writing(self) -> None:
        self._is_blocked = False
        if not self.dialogue.waiting:
            self._proceed()

    def connection_lost(self, error: Exception | None) -> None:
        """Take back what plugins hold, and run `mq_smtp_in_close`."""
        if self._is_lost:
            return
        self._is_lost = True
        self._keep(0)
        self._cancel()
        if self._hooks.close.run(self._message, done=self._closed) is not None:
            self._host.leave(self)

    def _cancel(self) -> None:
        """Take back what plugins hold, and do nothing about how it ends."""
        if self._is_stepping:
            self._host.dispatcher.cancel(self._message)
        if self._transaction is not None:
            self._transaction.cancel()

    def _closed(self, message: Mail, outcome: Outcome) -> None:
        self._host.leave(self)

    # What the server calls

    def is_late(self, now: float) -> bool:
        """Whether the client keeps us waiting for too long."""
        if self._is_lost or self.dialogue.waiting:
            return False
        incoming = self.dialogue.incoming
        return now - self.since > IDLE_TIMEOUT + (incoming.size / MIN_RATE if incoming is not None else 0.0)

    def shut_down(self) -> None:
        """Say goodbye when the transaction that is open is over."""
        self.dialogue.shut_down()
        self._proceed()

    def end(self, code: int, text: str) -> None:
        """Close the connection with this reply, unless a message is being stored: then its client must learn of that."""
        if self._is_lost:
            self._host.dispatcher.cancel(self._message)  # a plugin holds it at `mq_smtp_in_close`
        elif self._transaction is not None and self._transaction.is_storing:
            self.dialogue.shut_down()
        elif self._tls_task is not None:
            self._tls_task.cancel()
        elif self.dialogue.closed:
            self._transport.abort()  # it does not take the reply
        else:
            self.dialogue.give_up(code, text)
            self._cancel()
            self._flush()

    def abandon(self) -> None:
        """Close the connection without a word, now."""
        self._transport.abort()
        self.connection_lost(None)

    # Steps

    def _proceed(self) -> None:
        """Go on with what has been received, as far as it goes."""
        if self._is_proceeding or self._is_lost:
            return
        self._is_proceeding = True
        try:
            while (event := self.dialogue.next_event()) is not None:
                _STAGES[type(event)](self, event)
        finally:
            self._is_proceeding = False
        self._flush()

    def _flush(self) -> None:
        out = self.dialogue.take_output()
        if self._transport.is_closing():
            return  # we closed it, or the client did, which will be told to us in a moment
        if out:
            self.since = self._host.loop.time()
            self._transport.write(out)
        if self.dialogue.closed:
            self._transport.close()
        elif self._is_paused and not self.dialogue.waiting:
            self._is_paused = False
            self._transport.resume_reading()

    def _run(self, hook: Hook, finish: Callable[[Outcome], object], *arguments: Any) -> None:
        """Run a step, and then `finish`."""
        self._message.rejection = None
        self._finish = finish
        outcome = hook.run(self._message, *arguments, done=self._resume)
        if outcome is None:
            self._is_stepping = True
        else:
            finish(outcome)

    def _resume(self, message: Mail, outcome: Outcome) -> None:
        """A plugin has given back what it held."""
        self._is_stepping = False
        if not (self._is_lost or self.dialogue.closed):
            self._finish(outcome)
            self._proceed()

    def _answer(self, outcome: Outcome, failed: Rejection = FAILED) -> bool:
        """Tell the client how a step ended; whether it ended well."""
        rejection = failed if outcome is FAIL else self._message.rejection
        if rejection is None:
            self.dialogue.accept()
            return True
        self.dialogue.reject(*rejection)
        return False

    # Stages

    def _after_connect(self, outcome: Outcome) -> None:
        if self._info.tls and outcome is not FAIL and self._message.rejection is None:
            self._run(self._hooks.secure, self._after_secure)
        else:
            self._answer(outcome, UNAVAILABLE)

    def _start_tls(self, event: StartTls) -> None:
        self._flush()
        self._transport.pause_reading()  # what comes next is not for us but for TLS
        self._tls_task = self._host.loop.create_task(self._shake_hands())

    async def _shake_hands(self) -> None:
        assert self._host.tls is not None
        try:
            transport = await self._host.loop.start_tls(
                self._transport, self, self._host.tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except (OSError, asyncio.CancelledError):  # of which no client can be told
            transport = None
        self._tls_task = None
        if transport is None or self._transport.is_closing():
            self._transport.abort()
            self.connection_lost(None)
            return
        self._transport = self._info.transport = transport
        self._info.tls = True
        self._info.helo = None
        self._info.authenticated = False
        self.dialogue.secured()
        self._run(self._hooks.secure, self._after_secure)
        self._proceed()

    def _after_secure(self, outcome: Outcome) -> None:
        self._answer(outcome, UNAVAILABLE)

    def _authenticate(self, event: Authenticate) -> None:
        self._info.helo = self.dialogue.helo
        self._info.authenticated = False
        self._run(self._hooks.authenticate, self._after_authenticate, event.login, event.password)

    def _after_authenticate(self, outcome: Outcome) -> None:
        if outcome is not FAIL and self._message.rejection is None and not self._info.authenticated:
            self._message.rejection = REFUSED_LOGIN
        if not self._answer(outcome, NO_LOGIN_NOW):
            self._info.authenticated = False

    def _mail_from(self, event: MailFrom) -> None:
        self._info.helo = self.dialogue.helo
        self._recipients = []
        self._message.json = {"envelope": event.address}
        self._run(self._hooks.mailfrom, self._answer, event.address)

    def _rcpt_to(self, event: RcptTo) -> None:
        self._address = self._message.json["recipient"] = event.address
        self._run(self._hooks.rcptto, self._after_rcpt_to, event.address)

    def _after_rcpt_to(self, outcome: Outcome) -> None:
        if self._answer(outcome):
            self._recipients.append(self._message.recipient or self._address)

    def _take_message(self, event: Message) -> None:
        message = self._message
        message.mime = self._received = event.mime
        message.json.pop("recipient", None)
        message.json["recipients"] = list(self._recipients)
        self._run(self._hooks.data, self._after_data, event.mime)

    def _after_data(self, outcome: Outcome) -> None:
        if outcome is FAIL or self._message.rejection is not None:
            self._host.desk.turn_away(len(self._recipients), failed=outcome is FAIL)
            self._answer(outcome)
            self._forget_message()
        else:
            self._transaction = Transaction(self._host.desk, self._make_mails(), self._after_transaction)
            self._host.desk.submit(self._transaction)

    def _make_mails(self) -> list[Mail]:
        """One for each recipient, with all that the plugins know so far."""
        message = self._message
        known = message.json
        known.pop("recipients", None)  # each of them has one
        mails: list[Mail] = []
        for recipient in self._recipients:
            origin = self._host.next_origin(self._received, message.envelope or "", recipient)
            json = known | {"recipient": recipient} if not mails else copy.deepcopy(known) | {"recipient": recipient}
            mails.append(Mail(message.mime, json=json, connection=self._info, origin=origin))
        return mails

    def _after_transaction(self, refusal: Rejection | None) -> None:
        assert self._transaction is not None
        if refusal is None:
            self.dialogue.accept(f"stored as {self._transaction.mails[0].origin.id}")
        else:
            self.dialogue.reject(*refusal)
        self._transaction = None
        self._forget_message()
        self._proceed()

    def _forget_message(self) -> None:
        self._message.mime = self._received = b""
        self._keep(0)

    def _keep(self, size: int) -> bool:
        """Have so many octets of a message in memory; whether there is room for them."""
        size, self._kept = size - self._kept, size
        return size == 0 or self._host.keep(size)


_STAGES: dict[type, Callable[[SmtpConnection, Any], None]] = {
    StartTls: SmtpConnection._start_tls,
    Authenticate: SmtpConnection._authenticate,
    MailFrom: SmtpConnection._mail_from,
    RcptTo: SmtpConnection._rcpt_to,
    Message: SmtpConnection._take_message,
}
