"""SMTP as a server speaks it, without any I/O: bytes in, events and replies out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .incoming import Incoming
from .syntax import Wrong, check_address, decode_base64, find_control, parse_from, parse_mail, parse_plain, parse_to


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server offers, and where it draws the line; one for all its dialogues. Sizes are in octets."""

    name: str
    """Its host name, for the greeting."""
    starttls: bool = False
    auth: bool = False
    auth_without_tls: bool = False
    """Let passwords be sent in the clear."""
    max_message: int = 50 << 20
    max_recipients: int = 1000
    max_line: int = 4096
    """For a command. RFC 5321 asks for 512; long addresses, their parameters and AUTH need more."""
    max_message_line: int = 1 << 16
    """RFC 5321 allows 1,000, which real mail does not keep to."""
    max_errors: int = 20
    """Wrong commands and refused logins in one connection."""
    max_idle_commands: int = 100
    """Commands that move no mail, such as NOOP, from one mail to the next; more of them count as errors."""


class MailFrom(NamedTuple):
    """MAIL: a transaction begins. The address is empty for a bounce."""

    address: str


class RcptTo(NamedTuple):
    address: str


class Message(NamedTuple):
    """All of the mail, its lines as they were before they were made ready for SMTP."""

    mime: bytes


class Authenticate(NamedTuple):
    login: str
    password: str


class StartTls(NamedTuple):
    """Read no more, send the output, and begin TLS; then call `secured`, and answer."""


Event: TypeAlias = MailFrom | RcptTo | Message | Authenticate | StartTls

_LONGEST_TEXT = 500
"""A reply has 512 octets at most (RFC 5321, 4.5.3.1.5)."""
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3} ").match
_HTTP = re.compile(r"(?:GET|POST|PUT|HEAD|OPTIONS|CONNECT|DELETE|PATCH|PRI)\b|[\w-]+:", re.IGNORECASE).match
"""A browser that was made to talk to us, or a header of its request: commands may hide further down."""


class _Greeting:
    """What a dialogue begins by waiting for."""


class Dialogue:
    """The server's side of one connection.

    It begins by waiting for `accept`, which greets the client, or `reject`. From then on: give it what arrived with
    `receive`; take each event with `next_event`; answer it with `accept` or `reject`, now or later, as commands behind
    it wait; and send what `take_output` returns. When `closed` is true, close the connection after that.

    Whatever the client sends, it gets a reply of SMTP.
    """

    __slots__ = (
        "_at", "_buffer", "_continuation", "_due", "_errors", "_idle_commands", "_out", "_recipients", "_refusal",
        "_service", "_shutting_down", "_skipping", "_utf8",
        "authenticated", "closed", "helo", "in_transaction", "incoming", "secure",
    )  # fmt: skip

    def __init__(self, service: Service, *, secure: bool = False) -> None:
        self._service = service
        self.secure = secure
        self.authenticated = False
        self.closed = False
        self.helo: str | None = None
        """What the client calls itself; None until it said HELO or EHLO."""
        self.incoming: Incoming | None = None
        """The message that is coming in."""
        self._buffer = b""
        self._at = 0
        """How much of the buffer was taken."""
        self._out: list[bytes] = []
        self._due: type | None = _Greeting
        """What `accept` or `reject` is to answer."""
        self._continuation: Callable[[str], Event | None] | None = None
        """Takes the next line, which is no command, in an AUTH exchange."""
        self._refusal: str | None = None
        """The reply to all commands but QUIT."""
        self._errors = self._idle_commands = 0
        self._skipping = False
        """Within a line that is too long."""
        self._shutting_down = False
        self._reset()

    def _reset(self) -> None:
        self.in_transaction = False
        """From an accepted MAIL to the reply to its message."""
        self._utf8 = False
        self._recipients = 0

    # What the host calls

    @property
    def buffered(self) -> int:
        """Octets that wait to be taken, without those of a message that is coming in."""
        return len(self._buffer) - self._at

    def receive(self, data: bytes) -> None:
        """Add what the client sent."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def next_event(self) -> Event | None:
        """What the client wants next; None when more must arrive, or the event before must be answered first."""
        while self._due is None and not self.closed:
            if self._at == len(self._buffer) and not self._shutting_down:
                return None  # as after nearly every command
            event: Event | None
            try:
                if self.incoming is not None:
                    if not self._collect(self.incoming):
                        return None
                    event = self._finish(self.incoming)
                elif self._shutting_down and not self.in_transaction:
                    self._close("421 4.3.2 this server is shutting down")
                    return None
                else:
                    line = self._take_line()
                    if line is None:
                        return None
                    event = self._obey(line)
            except Wrong as error:
                self._complain(str(error))
                continue
            if event is not None:
                self._due = type(event)
                return event
        return None

    def take_output(self) -> bytes:
        """What to send to the client, in order."""
        out = self._out
        if len(out) == 1:
            return out.pop()
        self._out = []
        return b"".join(out)

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""
        return self._due is not None

    def accept(self, text: str = "") -> None:
        """Answer the event, or greet, with success; the reply to a message may have a text of its own."""
        due, self._due = self._due, None
        if due is RcptTo:
            self._recipients += 1
            self._out.append(b"250 2.1.5 recipient ok\r\n")
        elif due is MailFrom:
            self.in_transaction = True
            self._out.append(b"250 2.1.0 sender ok\r\n")
        elif due is Message:
            self._idle_commands = 0
            self._reset()
            self._say(f"250 2.6.0 {text or 'message accepted'}")
        elif due is Authenticate:
            self.authenticated = True
            self._say("235 2.7.0 you are logged in")
        elif due is _Greeting:
            self._say(f"220 {self._service.name} ESMTP")

    def reject(self, code: int, text: str) -> None:
        """Answer the event, or greet, with this refusal. 421 closes the connection.

        A client that is refused when it connects, or when TLS has begun, gets the same reply to all it says.
        """
        due, self._due = self._due, None
        reply = format_reply(code, text)
        if due is _Greeting or due is StartTls:
            self._refusal = reply
        if due is StartTls:
            return  # it is the client's turn to speak
        if code == 421:
            self._close(reply)
        elif due is Authenticate:
            self._complain(reply)
        else:
            self._say(reply)
            if due is Message:
                self._reset()

    def secured(self) -> None:
        """TLS has begun. Whatever was said before is forgotten, as somebody else may have said it."""
        self.secure = True
        self.helo = None
        self.authenticated = False
        self._reset()

    def shut_down(self) -> None:
        """Say goodbye as soon as no transaction is open; `next_event` does."""
        self._shutting_down = True

    def give_up(self, code: int, text: str) -> None:
        """Close the connection with this reply, whatever was going on."""
        self._due = None
        self._close(format_reply(code, text))

    # What it says

    def _say(self, reply: str) -> None:
        self._out.append(f"{reply}\r\n".encode())

    def _say_idly(self, reply: str) -> None:
        """The reply to a command that moves no mail."""
        self._say(reply)
        self._idle_commands += 1
        if self._idle_commands > self._service.max_idle_commands:
            self._count_error()

    def _complain(self, reply: str) -> None:
        self._say(reply)
        self._count_error()

    def _count_error(self) -> None:
        self._errors += 1
        if self._errors > self._service.max_errors:
            self._close("421 4.7.0 too many errors")

    def _close(self, reply: str) -> None:
        self._say(reply)
        self._buffer, self._at = b"", 0
        self.incoming = None
        self.closed = True

    # What it takes

    def _take_line(self) -> bytes | None:
        """The next line; empty for one that was too long, and None if there is no whole line yet."""
        buffer, start = self._buffer, self._at
        end = buffer.find(b"\n", start)
        if end < 0:
            if self._skipping or len(buffer) - start > self._service.max_line:
                self._skipping = True
                self._at = len(buffer)
            return None
        self._at = end + 1
        if self._skipping or end - start >= self._service.max_line:
            self._skipping = False
            return b""
        return buffer[start : end + 1]

    def _collect(self, incoming: Incoming) -> bool:
        """Whether the message is all there."""
        taken = incoming.take(self._buffer[self._at :])
        self._at = len(self._buffer) if taken is None else self._at + taken
        if incoming.is_endless:
            self._close(incoming.fault or "")
            return False
        return taken is not None

    def _finish(self, incoming: Incoming) -> Message:
        self.incoming = None
        try:
            return Message(incoming.finish())
        except Wrong:
            self._reset()
            raise

    def _obey(self, raw: bytes) -> Event | None:
        continuation, self._continuation = self._continuation, None
        line = _decode(raw)
        if continuation is not None:
            return continuation(line)
        verb, _, argument = line.partition(" ")
        command = _COMMANDS.get(verb) or _COMMANDS.get(verb.upper(), Dialogue._unknown)
        if self._refusal is not None and command is not Dialogue._quit:
            if self._refusal.startswith("421"):
                self._close(self._refusal)
                return None
            raise Wrong(self._refusal)
        if command is Dialogue._unknown and _HTTP(line):
            self._close("421 4.7.0 this is no web server")
            return None
        return command(self, argument.strip(" "))

    # Commands

    def _ehlo(self, argument: str) -> None:
        self._greet(argument)
        lines = [self._service.name, "PIPELINING", f"SIZE {self._service.max_message}", "8BITMIME", "SMTPUTF8"]
        if self._service.starttls and not self.secure:
            lines.append("STARTTLS")
        if self._takes_passwords:
            lines.append("AUTH PLAIN LOGIN")
        self._say_idly("".join(f"250-{line}\r\n" for line in lines) + "250 ENHANCEDSTATUSCODES")

    def _helo(self, argument: str) -> None:
        self._greet(argument)
        self._say_idly(f"250 {self._service.name}")

    def _greet(self, name: str) -> None:
        if not name or " " in name or not name.isascii():
            raise Wrong("501 5.5.4 say who you are: EHLO your.host.name")
        self.helo = name
        self._reset()

    def _mail(self, argument: str) -> MailFrom:
        if self.helo is None:
            raise Wrong("503 5.5.1 say EHLO first")
        if self.in_transaction:
            raise Wrong("503 5.5.1 a transaction is open; RSET ends it")
        match = parse_from(argument)
        if match is None:
            raise Wrong("501 5.1.7 say MAIL FROM:<address>")
        address, text = match.groups()
        self._utf8 = False
        if text is not None:
            parameters = parse_mail(text, auth=self._takes_passwords)
            if parameters.size > self._service.max_message:
                raise Wrong(f"552 5.3.4 a message may have {self._service.max_message} octets")
            self._utf8 = parameters.utf8
        if address is None:
            return MailFrom("")
        check_address(address, utf8=self._utf8)
        return MailFrom(address)

    def _rcpt(self, argument: str) -> RcptTo | None:
        if not self.in_transaction:
            raise Wrong("503 5.5.1 say MAIL first")
        match = parse_to(argument)
        if match is None:
            raise Wrong("501 5.1.3 say RCPT TO:<address>")
        address, parameters = match.groups()
        if parameters:
            raise Wrong("555 5.5.4 this parameter is not known here")
        check_address(address, utf8=self._utf8)
        if self._recipients >= self._service.max_recipients:
            self._say("452 4.5.3 no more recipients in this transaction")
            return None
        return RcptTo(address)

    def _data(self, argument: str) -> None:
        if argument:
            raise Wrong("501 5.5.4 DATA has no arguments")
        if not self.in_transaction:
            raise Wrong("503 5.5.1 say MAIL first")
        if not self._recipients:
            raise Wrong("554 5.5.1 no valid recipients")
        self._out.append(b"354 end with CR LF . CR LF\r\n")
        self.incoming = Incoming(self._service.max_message, self._service.max_message_line)

    def _rset(self, argument: str) -> None:
        self._reset()
        self._say_idly("250 2.0.0 ok")

    def _noop(self, argument: str) -> None:
        self._say_idly("250 2.0.0 ok")

    def _vrfy(self, argument: str) -> None:
        self._say_idly("252 2.5.0 send it some mail and see")

    def _help(self, argument: str) -> None:
        self._say_idly("214 2.0.0 see RFC 5321")

    def _quit(self, argument: str) -> None:
        self._close("221 2.0.0 bye")

    def _unknown(self, argument: str) -> None:
        raise Wrong("500 5.5.1 no such command")

    def _starttls(self, argument: str) -> StartTls | None:
        if argument:
            raise Wrong("501 5.5.4 STARTTLS has no arguments")
        if self.secure or not self._service.starttls:
            raise Wrong("503 5.5.1 STARTTLS is not offered")
        if self.buffered:
            # It came in the clear, from whoever was able to put it there, and would pass for what came by TLS.
            self._close("554 5.5.1 nothing may follow STARTTLS before its reply")
            return None
        self._say("220 2.0.0 go ahead")
        return StartTls()

    @property
    def _takes_passwords(self) -> bool:
        return self._service.auth and (self.secure or self._service.auth_without_tls)

    def _auth(self, argument: str) -> Event | None:
        if not self._service.auth:
            raise Wrong("503 5.5.1 AUTH is not offered")
        if not self._takes_passwords:
            raise Wrong("538 5.7.11 say STARTTLS first")
        if self.helo is None or self.authenticated or self.in_transaction:
            raise Wrong("503 5.5.1 AUTH comes once, after EHLO and before MAIL")
        mechanism, _, initial = argument.partition(" ")
        takers: dict[str, tuple[Callable[[str], Event | None], str]] = {
            "PLAIN": (self._take_plain, ""),
            "LOGIN": (self._take_login, "VXNlcm5hbWU6"),
        }
        if mechanism.upper() not in takers:
            raise Wrong("504 5.5.4 PLAIN and LOGIN are known here")
        take, challenge = takers[mechanism.upper()]
        if initial:
            return take(initial)
        self._challenge(challenge, take)
        return None

    def _challenge(self, challenge: str, take: Callable[[str], Event | None]) -> None:
        self._say(f"334 {challenge}")
        self._continuation = take

    def _take_plain(self, line: str) -> Authenticate:
        return Authenticate(*parse_plain(line))

    def _take_login(self, line: str) -> None:
        login = decode_base64(line)
        self._challenge("UGFzc3dvcmQ6", lambda line: Authenticate(login, decode_base64(line)))


_COMMANDS: dict[str, Callable[[Dialogue, str], Event | None]] = {
    "EHLO": Dialogue._ehlo,
    "HELO": Dialogue._helo,
    "STARTTLS": Dialogue._starttls,
    "AUTH": Dialogue._auth,
    "MAIL": Dialogue._mail,
    "RCPT": Dialogue._rcpt,
    "DATA": Dialogue._data,
    "RSET": Dialogue._rset,
    "NOOP": Dialogue._noop,
    "QUIT": Dialogue._quit,
    "VRFY": Dialogue._vrfy,
    "HELP": Dialogue._help,
}


def _decode(raw: bytes) -> str:
    """The line as text, without its end. Raises Wrong."""
    if not raw:
        raise Wrong("500 5.5.2 this line is too long")
    try:
        line = raw.decode()
    except UnicodeDecodeError:
        raise Wrong("501 5.5.2 this is not UTF-8") from None
    if line[-2:] != "\r\n":
        raise Wrong("500 5.5.2 lines must end in CR LF")
    line = line[:-2]
    if not line.isprintable() and find_control(line):
        raise Wrong("500 5.5.2 control characters are not allowed")
    return line


def format_reply(code: int, text: str) -> str:
    """A reply of one line, with an enhanced code in front of the text unless it has one."""
    if not _ENHANCED(text):
        text = f"{code // 100}.7.1 {text}"
    return f"{code} {printable(text)}"


def printable(text: str) -> str:
    """As it can stand in a reply, also behind an enhanced code."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_LONGEST_TEXT])
