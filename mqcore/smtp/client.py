"""The client's side of SMTP and of LMTP (RFC 2033), without I/O."""

from __future__ import annotations

import base64
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from . import xclient
from .content import without_dots
from .replies import ProtocolError, Reply, ReplyReader
from .syntax import is_safe

Blocks = Callable[[Reply], bool]


class Terms(NamedTuple):
    """How a mail is to be sent."""

    utf8: bool | None = None
    """Whether SMTPUTF8 is said: if True, to servers that offer it, and if None, where an address needs it. If False, an address
    goes out as it is."""
    lenient: bool = False
    """Whether NULs and bytes that are no UTF-8 in addresses are sent to whom nobody asked about them."""
    dsn: str = ""
    """Parameters of MAIL for a server that offers DSN."""
    rcpt_dsn: Mapping[str, str] = {}
    """Those of RCPT, by recipients."""
    forwarded: Mapping[str, str | None] = {}
    """What a server that offers XFORWARD is told of the client before (`xclient.XFORWARD`, in small letters)."""


USUAL = Terms()


class ClientProtocol:
    """One connection, from its greeting on.

    One thing at a time is asked of the server. It is over when `receive` returns a reply, which is the last that it took:
    first the greeting and EHLO, which are asked for by making this; then whatever the methods ask for. What is to be sent
    meanwhile, `take_output` has.

        protocol = ClientProtocol("client.example")
        while (hello := protocol.receive(read())) is None:
            write(protocol.take_output())

    When the connection broke, or a ProtocolError was raised, `state` says what was waited for, `in_doubt` whether the server
    may have the message, and `replies` to which recipients it replied all the same.
    """

    def __init__(self, name: str, *, lmtp: bool = False, secure: bool = False, pipelining: bool = True) -> None:
        """`name` is the host that we are. With `pipelining` commands go in groups to servers that offer it."""
        self.extensions: dict[str, str] = {}
        """What the server offers, by keywords in capitals."""
        self.lmtp = lmtp
        self.secure = secure
        """Whether TLS has begun."""
        self.closed = False
        """Whether the server closes the connection, or is to be left."""
        self.in_doubt = False
        """Whether a message is sent to which not all replies are there."""
        self.replies: dict[str, Reply] = {}
        """Of the transaction that was last begun: for each recipient to whom it has ended, with what."""
        self.recipients: Sequence[str] = ()
        """Of that transaction."""
        self.heard = 0
        """Replies so far."""
        self.state = "greeting"
        """What the reply that is waited for, or the last one, is to."""
        self.pipelined = False
        """Whether the commands of the transaction that was last begun went out together."""
        self._name = name.encode("ascii", "replace")
        self._pipelining = pipelining
        self._reader = ReplyReader()
        self._output: list[bytes] = []
        self._expected: deque[str] = deque(["greeting"])
        self._is_spoilt = False
        """Whether it is to be left when the transaction is over."""
        self._later: deque[tuple[str, bytes]] = deque()
        """Commands that wait for the replies to those before."""
        self._secrets: list[bytes] = []
        self._content = b""
        self._is_binary = False
        """Whether the message goes by BDAT (RFC 3030)."""
        self._blocks: Blocks | None = None
        self._mail_reply: Reply | None = None
        self._rcpt_replies: list[Reply] = []
        self._unanswered: deque[str] = deque()
        """Those whom the server takes the message for, as long as they have no reply to it."""

    @property
    def is_idle(self) -> bool:
        """Whether something can be asked for: nothing is waited for, and the server said nothing that it was not asked."""
        return not (self.closed or self._expected or self._output or self._reader.is_within)

    @property
    def mechanisms(self) -> list[str]:
        """Of AUTH: how the server lets clients log in."""
        return self.extensions.get("AUTH", "").upper().split()

    def take_output(self) -> bytes:
        """What is to be sent."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def receive(self, data: bytes, *, flushed: bool = True) -> Reply | None:
        """The reply that ends what was asked for; None if it is not there yet. Raises ProtocolError.

        `flushed` is whether all that was put out has left: who has not got all of a message cannot have taken it.
        """
        self._reader.feed(data)
        end = None
        try:
            while not self.closed and (said := self._reader.next()) is not None:
                if self._output or not self._expected:
                    raise ProtocolError(f"nobody asked for this reply: {said[0]} {' '.join(said[1])}")
                end = self._take(*said, flushed)
            if self._reader.is_within and not self.closed and (self._output or not self._expected):
                raise ProtocolError("the server speaks before it is asked")
        except ProtocolError:
            self.closed = True
            if end is not None and end.state == "message":
                return end  # which holds, whatever follows
            if not self.in_doubt:
                self.replies = {}  # they may have been to something else
            raise
        return end

    # What can be asked for

    def start_tls(self) -> None:
        """With 220 read no more, begin TLS, and call `secured`."""
        self._ask("starttls", b"STARTTLS\r\n")

    def secured(self) -> None:
        """TLS has begun, and all begins anew: ends with the reply to EHLO."""
        self.secure = True
        self._hello()

    @property
    def size_limit(self) -> int:
        """Octets of a message, at most; 0 for any number, as far as the server says."""
        limit = self.extensions.get("SIZE", "")
        return min(int(limit), sys.maxsize) if limit.isdecimal() and len(limit) <= 20 else 0

    def login(self, login: str, password: str) -> None:
        """By AUTH PLAIN, or LOGIN where only that is offered. In the clear it raises ValueError."""
        if not self.secure:
            raise ValueError("no password is sent in the clear")
        if "PLAIN" in self.mechanisms:
            self._ask("auth", b"AUTH PLAIN %b\r\n" % _base64(f"\0{login}\0{password}"))
        else:
            self._secrets = [_base64(login) + b"\r\n", _base64(password) + b"\r\n"]
            self._ask("auth", b"AUTH LOGIN\r\n")

    def send(
        self, sender: str, recipients: Sequence[str], content: bytes, blocks: Blocks | None = None, terms: Terms = USUAL
    ) -> Reply | None:
        """One transaction; in the end, or if this returns a reply at once, `replies` has one for each recipient.

        `content` is what `make_content` makes. `recipients` are there once each. If the reply to one of them `blocks`, the
        message is not sent to the others, who keep what they were told.
        """
        if not self.is_idle:
            raise RuntimeError("something else is asked for")
        if not all(is_safe(address, raw=terms.lenient) for address in (*recipients, *filter(None, [sender]))):
            raise ValueError(f"these cannot be sent as addresses: {sender!a}, {recipients!a}")
        self.replies = {}
        self.state = "mailfrom"
        self.recipients, self._content, self._blocks = recipients, content, blocks
        self._is_binary = b"\0" in content and {"BINARYMIME", "CHUNKING"} <= self.extensions.keys()
        self._mail_reply, self._rcpt_replies = None, []
        needs_utf8 = terms.utf8 is not False and not (sender + "".join(recipients)).isascii()
        refusal = self._find_refusal(content, terms, needs_utf8=needs_utf8)
        if refusal is not None:
            self.replies = dict.fromkeys(recipients, refusal)
            return refusal
        self.pipelined = self._pipelining and "PIPELINING" in self.extensions
        says_utf8 = needs_utf8 or (terms.utf8 is True and "SMTPUTF8" in self.extensions)
        parameters = self._make_parameters(content, says_utf8=says_utf8)
        rcpt_dsn: Mapping[str, str] = {}
        if "DSN" in self.extensions:
            parameters += terms.dsn.encode()
            rcpt_dsn = terms.rcpt_dsn
        offered = self.extensions.get("XFORWARD", "").upper().split() if terms.forwarded else ()
        commands = [("xforward", command) for command in xclient.write(terms.forwarded, offered)]
        commands.append(("mailfrom", b"MAIL FROM:<%b>%b\r\n" % (_encode(sender), parameters)))
        for to in recipients:
            commands.append(("rcptto", b"RCPT TO:<%b>%b\r\n" % (_encode(to), rcpt_dsn.get(to, "").encode())))
        if not self.pipelined:
            self._later.extend(commands)
            self._ask(*self._later.popleft())
            return None
        if (blocks is None or len(recipients) == 1) and not self._is_binary:
            # Else the message could go to those who are taken, though another one's reply blocks.
            commands.append(("data", b"DATA\r\n"))
        for state, _ in commands:
            self._expected.append(state)
        self._output.append(b"".join([command for _, command in commands]))
        return None

    def _find_refusal(self, content: bytes, terms: Terms, *, needs_utf8: bool) -> Reply | None:
        """Why it is no use to ask this server."""
        if 0 < self.size_limit < len(content):
            limit = self.extensions["SIZE"]
            return Reply("mailfrom", 552, f"5.3.4 the next server takes messages of {limit} octets at most")
        if needs_utf8 and "SMTPUTF8" not in self.extensions:
            return Reply("mailfrom", 553, "5.6.7 the next server takes ASCII addresses only")
        if b"\0" in content and not (self._is_binary or terms.lenient):
            return Reply("mailfrom", 554, "5.6.0 the next server takes no message with a NUL in it")
        return None

    def _make_parameters(self, content: bytes, *, says_utf8: bool) -> bytes:
        """Those of MAIL."""
        parameters = b" SIZE=%d" % len(content) if "SIZE" in self.extensions else b""
        if self._is_binary:
            parameters += b" BODY=BINARYMIME"
        elif "8BITMIME" in self.extensions and not content.isascii():
            parameters += b" BODY=8BITMIME"
        return parameters + b" SMTPUTF8" if says_utf8 else parameters

    def reset(self) -> None:
        self._ask("rset", b"RSET\r\n")

    def quit(self) -> None:
        self._ask("quit", b"QUIT\r\n")

    def _ask(self, state: str, command: bytes) -> None:
        self.state = "mailfrom" if state == "xforward" else state
        self._expected.append(state)
        self._output.append(command)

    def _hello(self) -> None:
        self.extensions = {}
        self._ask("ehlo", b"%b %b\r\n" % (b"LHLO" if self.lmtp else b"EHLO", self._name))

    # What is said

    def _take(self, code: int, lines: list[str], flushed: bool) -> Reply | None:
        self.heard += 1
        reply = Reply(self._expected.popleft(), code, " ".join(lines))
        end = self._interpret(reply, lines, flushed)
        state = self._expected[0] if self._expected and end is None else reply.state
        self.state = "mailfrom" if state == "xforward" else state
        return end

    def _interpret(self, reply: Reply, lines: list[str], flushed: bool) -> Reply | None:
        if 300 <= (reply.code or 0) <= 399 and reply.state not in ("data", "auth"):
            raise ProtocolError(f"this is no reply to {reply.state}: {reply}")
        if reply.state == "message":
            return self._take_message(reply, flushed)
        if reply.state == "nobody":
            self.closed = reply.code == 421
            return self._end_without_message()
        if reply.code == 421:
            self.closed = True
            self._expected.clear()
            return reply._replace(state="mailfrom") if reply.state == "xforward" else reply
        match reply.state:
            case "xforward":
                self._take_xforward()
                return None
            case "mailfrom":
                return self._take_mail(reply)
            case "rcptto":
                return self._take_rcpt(reply)
            case "data":
                return self._take_data(reply)
            case "greeting":
                return self._take_greeting(reply)
            case "ehlo":
                return self._take_ehlo(reply, lines)
            case "auth":
                return self._take_auth(reply)
        return reply

    def _take_greeting(self, reply: Reply) -> Reply | None:
        if not reply.is_positive:
            return reply
        self._hello()
        return None

    def _take_ehlo(self, reply: Reply, lines: list[str]) -> Reply | None:
        if reply.is_final and not (self.lmtp or self.secure):
            self._ask("helo", b"HELO %b\r\n" % self._name)  # a server from before 1995
            return None
        for line in lines[1:] if reply.is_positive else ():
            keyword, _, parameters = line.replace("=", " ", 1).partition(" ")  # `AUTH=LOGIN` is of that time too
            self.extensions.setdefault(keyword.upper(), parameters)
        return reply

    def _take_auth(self, reply: Reply) -> Reply | None:
        if reply.code != 334:
            return reply
        self._ask("auth", self._secrets.pop(0) if self._secrets else b"*\r\n")
        return None

    def _take_xforward(self) -> None:
        """Whatever it says: the mail goes there all the same."""
        if not self.pipelined:
            self._ask(*self._later.popleft())

    def _take_mail(self, reply: Reply) -> Reply | None:
        self._mail_reply = reply
        if not reply.is_positive:
            self._later.clear()
            self.replies = dict.fromkeys(self.recipients, reply)
            if not self._expected:
                return reply
        return self._next()

    def _take_rcpt(self, reply: Reply) -> Reply | None:
        told = 1
        if reply.is_too_many and self._later:
            self._later.clear()
            told = len(self.recipients) - len(self._rcpt_replies)
        if self._is_begun and not reply.is_positive:
            at = len(self._rcpt_replies)
            self.replies |= dict.fromkeys(self.recipients[at : at + told], reply)
        self._rcpt_replies += [reply] * told
        return self._next()

    def _next(self) -> Reply | None:
        """After MAIL, or a RCPT."""
        if self._later:
            self._ask(*self._later.popleft())
        elif not self._expected:
            if not self._accepted or (self._blocks is not None and any(map(self._blocks, self._rcpt_replies))):
                return self._end_without_message()
            if self._is_binary:
                self._send_binary()
            else:
                self._ask("data", b"DATA\r\n")
        return None

    def _send_binary(self) -> None:
        self._unanswered = deque(self._accepted)
        content = without_dots(self._content)
        self.state = "message"
        self._put_out(b"BDAT %d LAST\r\n" % len(content) + content)

    @property
    def _is_begun(self) -> bool:
        return self._mail_reply is not None and self._mail_reply.is_positive

    @property
    def _accepted(self) -> list[str]:
        if not self._is_begun:
            return []
        return [to for to, reply in zip(self.recipients, self._rcpt_replies, strict=True) if reply.is_positive]

    def _take_data(self, reply: Reply) -> Reply | None:
        if reply.is_positive:
            raise ProtocolError(f"this is no reply to DATA: {reply}")
        self._unanswered = deque(self._accepted)
        if reply.code == 354 and self._unanswered:
            self._put_out(self._content)
            return None
        if reply.code == 354:
            if self.lmtp:
                raise ProtocolError("the server wants a message for nobody")
            self._ask("nobody", b".\r\n")  # RFC 2920, 3.1
            return None
        if not self._unanswered:
            return self._end_without_message()
        self.replies |= dict.fromkeys(self._unanswered, reply)
        return reply

    def _put_out(self, message: bytes) -> None:
        self.in_doubt = True
        self._expected.extend(["message"] * (len(self._unanswered) if self.lmtp else 1))
        self._output.append(message)

    def _take_message(self, reply: Reply, flushed: bool) -> Reply | None:
        if not flushed:
            self._is_spoilt = True  # what is left of the message would be taken for commands
            if reply.is_positive:
                raise ProtocolError(f"the server had not all of the message when it said {reply}")
        if reply.code == 421:
            self._is_spoilt = True
        if self.lmtp:
            self.replies[self._unanswered.popleft()] = reply
            if self._unanswered:
                return None
        else:
            self.replies |= dict.fromkeys(self._unanswered, reply)
        self.in_doubt = False
        self.closed = self._is_spoilt
        return reply

    def _end_without_message(self) -> Reply:
        if self._is_begun:
            self.replies = dict(zip(self.recipients, self._rcpt_replies, strict=True))
        return self.replies[self.recipients[-1]]


def _encode(address: str) -> bytes:
    return address.encode(errors="surrogateescape")


def _base64(text: str) -> bytes:
    return base64.b64encode(text.encode())
