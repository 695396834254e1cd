"""One connection to the next server, and the transactions on it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aiosmtplib import SMTP, SMTPException, SMTPHeloError, SMTPResponseException

from ..message import Rejection

CONNECT_TIMEOUT = 30.0
"""Seconds, for the connection, for TLS, and for each reply until the server is ready."""
COMMAND_TIMEOUT = 300.0
ANSWER_TIMEOUT = 600.0
"""Seconds from the end of a message to its answer (RFC 5321, 4.5.3.2.6): who waits for less sends mails twice."""
MIN_RATE = 1000
"""Octets of a message that the server takes in a second, in the long run."""


class NextServer(NamedTuple):
    """Where mails are delivered to, and as whom."""

    url: str
    host: str
    port: int
    name: str
    """The host name that we say we are."""
    tls: ssl.SSLContext
    implicit_tls: bool


class Answer(NamedTuple):
    """What the next server said to one recipient of a mail."""

    state: str
    """How far it came: connect, mailfrom, rcptto, data (the command) or message (all of it is sent)."""
    code: int | None
    """None if the connection broke. If that was in the state `message`, the server may have the mail, or not."""
    text: str

    @property
    def is_positive(self) -> bool:
        return self.code is not None and 200 <= self.code <= 299

    @property
    def is_delivered(self) -> bool:
        return self.state == "message" and self.is_positive

    @property
    def is_final(self) -> bool:
        return self.code is not None and 500 <= self.code <= 599

    @property
    def is_temporary(self) -> bool:
        """Whether it may be another one next time."""
        return not self.is_positive and not self.is_final

    @property
    def is_too_many(self) -> bool:
        """Whether it is the answer to a recipient for whom there is to be another transaction (RFC 5321, 4.5.3.1.10)."""
        return self.state == "rcptto" and self.code == 452 and ("4.5.3" in self.text or "too many" in self.text.lower())

    def __str__(self) -> str:
        return f"{self.code} {self.text}"

    def as_rejection(self) -> Rejection:
        """For whom the mail came from. Not with 421, which is about our connection and not about theirs."""
        if self.code is None:
            who = "" if self.state == "connect" else "the next server failed: "
            return Rejection(451, f"4.4.2 {who}{self.text}")
        return Rejection(self.code if 400 <= self.code <= 599 and self.code != 421 else 451, self.text)

    def as_dict(self, recipient: str) -> dict[str, Any]:
        return {"recipient": recipient, "state": self.state, "code": self.code, "description": self.text}


class Unreachable(Exception):
    """There is no connection to the next server, or it does not want to talk to us. `final`: nor will it later."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class Lost(Exception):
    """The connection broke within a transaction, or the server closes it, or what it said is no reply."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


class Client:
    """One connection, for one transaction after the other."""

    def __init__(self, smtp: SMTP) -> None:
        self._smtp = smtp
        self.is_used = False
        """Whether there was a transaction before, so that the server may have had enough of it."""
        self.is_in_doubt = False
        """Whether a message is sent and not answered."""
        self._is_open = False

    @classmethod
    async def connect(cls, server: NextServer) -> Client:
        """Raises Unreachable. TLS begins if the server offers it."""
        smtp = SMTP(
            hostname=server.host,
            port=server.port,
            local_hostname=server.name,
            timeout=CONNECT_TIMEOUT,
            use_tls=server.implicit_tls,
            start_tls=False if server.implicit_tls else None,
            tls_context=server.tls,
        )
        try:
            await smtp.connect()
            if smtp.is_ehlo_or_helo_needed:
                await _say_hello(smtp)
        except BaseException as error:
            smtp.close()
            if isinstance(error, (SMTPException, OSError)):
                raise _explain(error) from error
            raise
        return cls(smtp)

    @property
    def is_reusable(self) -> bool:
        """Whether the server keeps the connection open, and no transaction was left in the middle."""
        return self._smtp.is_connected and not self._is_open

    def close(self) -> None:
        self._smtp.close()

    async def quit(self) -> None:
        """Say goodbye, and close."""
        with contextlib.suppress(SMTPException, OSError):
            await self._smtp.quit(timeout=CONNECT_TIMEOUT)
        self._smtp.close()

    async def send(
        self, sender: str, recipients: Sequence[str], content: bytes, *, blocks: Callable[[Answer], bool]
    ) -> dict[str, Answer]:
        """One transaction, and the answer to each recipient. Raises Lost.

        If the answer to a RCPT `blocks`, the message is not sent to anybody; those whom the server would have taken keep
        the answer to theirs.
        """
        self._is_open = True
        begun = await self._mail(sender, recipients, content)
        if not begun.is_positive:
            answers = dict.fromkeys(recipients, begun)
        else:
            answers = await self._rcpt(recipients)
            accepted = [recipient for recipient, answer in answers.items() if answer.is_positive]
            if accepted and not any(map(blocks, answers.values())):
                answers |= dict.fromkeys(accepted, await self._message(content))
        self._is_open = not any(answer.is_delivered for answer in answers.values())
        if self._is_open:
            with contextlib.suppress(Lost):  # the answers hold all the same
                self._is_open = not (await self._command("rset", b"RSET")).is_positive
        self.is_used = True
        return answers

    async def _mail(self, sender: str, recipients: Sequence[str], content: bytes) -> Answer:
        options = []
        if self._smtp.supports_extension("size"):
            options.append(b"SIZE=%d" % len(content))
        if not content.isascii() and self._smtp.supports_extension("8bitmime"):
            options.append(b"BODY=8BITMIME")
        if not all(address.isascii() for address in (sender, *recipients)):
            if not self._smtp.supports_extension("smtputf8"):
                return Answer("mailfrom", 553, "5.6.7 the next server takes ASCII addresses only")
            options.append(b"SMTPUTF8")
        return await self._command("mailfrom", b"MAIL", b"FROM:<%b>" % sender.encode(), *options)

    async def _rcpt(self, recipients: Sequence[str]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for recipient in recipients:
            answers[recipient] = await self._command("rcptto", b"RCPT", b"TO:<%b>" % recipient.encode())
            if answers[recipient].is_too_many:
                return dict.fromkeys(recipients, answers[recipient]) | answers
        return answers

    async def _message(self, content: bytes) -> Answer:
        ready = await self._command("data", b"DATA")
        protocol = self._smtp.protocol
        if ready.code != 354 or protocol is None:
            if ready.is_temporary or ready.is_final:
                return ready
            raise Lost(Answer("data", None, f"DATA was answered with {ready.code} {ready.text}"))
        # In two steps, and not by `SMTP.data`, so that it is known whether the message was sent when the connection breaks.
        try:
            protocol.write(content)
            self.is_in_doubt = True
            response = await protocol.read_response(timeout=ANSWER_TIMEOUT + len(content) / MIN_RATE)
        except (SMTPException, OSError) as error:
            raise Lost(Answer("message" if self.is_in_doubt else "data", None, _reason(error))) from error
        self.is_in_doubt = False
        if response.code == 421:
            self.close()
        return Answer("message", response.code, _one_line(response.message))

    async def _command(self, state: str, *words: bytes) -> Answer:
        try:
            response = await self._smtp.execute_command(*words, timeout=COMMAND_TIMEOUT)
        except (SMTPException, OSError) as error:
            raise Lost(Answer(state, None, _reason(error))) from error
        answer = Answer(state, response.code, _one_line(response.message))
        if answer.code == 421:
            raise Lost(answer)
        return answer


async def _say_hello(smtp: SMTP) -> None:
    """With EHLO, or with HELO to a server from before 1995."""
    try:
        await smtp.ehlo()
    except SMTPHeloError:
        await smtp.helo()


def _explain(error: Exception) -> Unreachable:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    no_such_host = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    final = no_such_host or isinstance(cause, ssl.SSLCertVerificationError)
    if isinstance(error, SMTPResponseException) and error.code > 0:
        return Unreachable(_one_line(f"it says {error.code} {error.message}"), final=500 <= error.code <= 599)
    return Unreachable(getattr(cause, "strerror", None) or _reason(cause) or _reason(error), final=final)


def _reason(error: Exception) -> str:
    """What aiosmtplib says, or the system."""
    return _one_line(getattr(error, "message", "") or str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())
