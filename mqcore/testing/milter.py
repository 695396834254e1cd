"""A milter in memory, and mail servers that ask it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .. import Dispatcher
from ..mail import Gateway, Mail, MilterSource
from ..mail.milter._session import Session
from ..mail.milter.server import MilterServer
from ..milter.edits import join, split
from ..milter.events import Field
from ..milter.packets import packet, parameters
from .mail import bytes_of
from .memory import PORT, Dialogue, Dialogues, Nowhere, Reply
from .steps import Mq

OFFER = packet(b"O", struct.pack("!III", 6, 0x1FF, 0x1FFFFF))
"""Version 6, and all that Postfix lets a milter do and leave out."""
CHUNK = 65_535
"""Octets of a part of a body."""
NO_REPLY = {b"C": 0x1000, b"H": 0x2000, b"M": 0x4000, b"R": 0x8000}
"""By commands: the bits by which a milter says that it gives no answer."""
ENDS = (b"c", b"d", b"y")
"""Answers; other packets say what to change, or that an answer will come."""


@dataclass
class Queued:
    """A mail as the mail server queues it: `mime` with what was changed, and to whom. `quarantine`: why it is to be kept, or
    None."""

    mime: bytes
    sender: str
    recipients: list[str] = field(default_factory=list)
    quarantine: str | None = None


class MilterDialogues(Dialogues):
    """Whole dialogues of a Postfix with the real milter, all of it but the sockets, on the clock of an `Mq`.

    `stored`: the mails that the server queued, with what plugins changed, as `Queued`, in order. `failed`: why steps failed, as
    `HOOK: ERROR`, told when the transaction or connection is over.

    `close()` it before the `Mq`, or use `with`. On uvloop only. `max_message_size` in octets.
    """

    def __init__(self, mq: Mq, *, max_message_size: int = 50 << 20) -> None:
        super().__init__(mq)
        self.stored: list[Queued] = []
        self._source = _Source(max_message_size)
        self._server: MilterServer | None = None

    def connect(self, peer: str = "192.0.2.7", tls: bool = False) -> MilterClient:
        """An SMTP client of the mail server from this address; what it is told then is in `client.greeting`. `tls`: it uses
        TLS."""
        self._begin()
        assert self._server is not None
        client = MilterClient(self._mq, self._server, peer, tls, self.stored)
        self._clients.append(client)
        return client

    def _serve(self, dispatcher: Dispatcher) -> Gateway:
        gateway = Gateway(dispatcher, self._source, MilterSource.own_sink(self._source.url))
        self._server = MilterServer(self._source, gateway)
        return gateway


class _Source(MilterSource):
    """Without sockets."""

    def __init__(self, max_message_size: int) -> None:
        self.max_message_size = max_message_size
        self.max_connections = None
        self._listening = Nowhere("milter")
        self.url, self.port, self.is_local = self._listening.url, 0, True


class MilterClient(Dialogue):
    """What an SMTP client is told by a mail server that asks the milter. `greeting` is the first that it is told.

    Where the milter has nothing against something the reply is the server's own, 250.
    """

    who = "milter"

    def __init__(self, mq: Mq, server: MilterServer, peer: str, tls: bool, stored: list[Queued]) -> None:
        super().__init__(mq, Session(server.host), peer)
        self._stored = stored
        self._tls = tls
        self._send(OFFER)
        _, self._steps = struct.unpack("!II", self._packets(lambda command: command == b"O")[-1][1][4:])
        self._said: list[tuple[bytes, bytes]] = []
        self._sender, self._recipients = "", list[str]()
        family = b"6" if ":" in peer else b"4"
        address = b"client.example.org\0" + family + struct.pack("!H", PORT) + peer.encode() + b"\0"
        self.greeting = self._ask(b"C", address, b"j", b"mx.example.org", b"v", b"Postfix 3.7.11")

    def ehlo(self, name: str = "client.example.org") -> Reply:
        """EHLO, by which it says who it is."""
        return self._ask(b"H", parameters(name.encode()), *([b"{tls_version}", b"TLSv1.3"] if self._tls else []))

    def mail(self, sender: str = "sender@example.org", *, login: str | None = None) -> Reply:
        """MAIL: who it is from, `""` for a bounce. `login`: as whom the client has logged in."""
        self._sender, self._recipients = sender, []
        return self._ask(b"M", _path(sender), *([b"{auth_authen}", login.encode()] if login else []))

    def rcpt(self, recipient: str = "recipient@example.net") -> Reply:
        """RCPT: to whom; once for each recipient."""
        reply = self._ask(b"R", _path(recipient))
        if reply.code == 250 and self._said[-1][0] != b"d":
            self._recipients.append(recipient)
        return reply

    def data(self, mail: Mail | bytes = b"Subject: test\r\n\r\ntest\r\n") -> Reply:
        """The message, whose lines may end with LF. A mail that the milter has nothing against is queued."""
        if not self._recipients:
            return Reply(503, "5.5.1 no recipient was accepted")
        fields, body = split(bytes_of(mail).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        for name, value in fields:
            self._send(packet(b"L", parameters(name, value)))
        self._send(packet(b"N"))
        for at in range(0, len(body), CHUNK):
            self._send(packet(b"B", body[at : at + CHUNK]))
        reply = self._ask(b"E", b"", b"i", b"QUEUEID")
        if reply.code == 250 and self._said[-1][0] != b"d":
            self._stored.append(self._queued(fields, body))
        self._send(packet(b"A"))
        return reply

    def _queued(self, fields: Sequence[Field], body: bytes) -> Queued:
        """What was sent, with what the milter said to change, as Postfix does it: meanwhile a field of its own is on top."""
        mail = Queued(b"", self._sender, list(self._recipients))
        now, parts = [(b"Received", b""), *fields], []
        for command, data in self._said:
            if command in (b"i", b"m"):
                name, value = data[4:].removesuffix(b"\0").split(b"\0", 1)
                (now.insert if command == b"i" else _change(now, name))(int.from_bytes(data[:4], "big"), (name, value))
            elif command == b"b":
                parts.append(data)
            elif command == b"e":
                mail.sender = _address(data)
            elif command == b"+":
                mail.recipients.append(_address(data))
            elif command == b"-":
                mail.recipients = [one for one in mail.recipients if one != _address(data)]
            elif command == b"q":
                mail.quarantine = data.removesuffix(b"\0").decode(errors="replace")
        mail.mime = join(now[1:], b"".join(parts) if parts else body)
        return mail

    def _ask(self, command: bytes, data: bytes, *macros: bytes) -> Reply:
        self._send(packet(b"D", command + parameters(*macros)) + packet(command, data))
        if self._steps & NO_REPLY.get(command, 0):
            self._said = [(b"c", b"")]
        else:
            self._said = self._packets(ENDS.__contains__)
        answer, text = self._said[-1]
        if answer != b"y":
            return Reply(250, "2.0.0 ok")
        line = text.removesuffix(b"\0").replace(b"%%", b"%").decode(errors="replace")
        return Reply(int(line[:3]), line[4:])

    def _packets(self, is_last: Callable[[bytes], bool]) -> list[tuple[bytes, bytes]]:
        """What the milter says, up to an answer."""
        found: list[tuple[bytes, bytes]] = []
        while not found or not is_last(found[-1][0]):
            said = self._wait(_length_of_packet)
            found.append((said[4:5], said[5:]))
        return found


def _length_of_packet(written: bytearray) -> int:
    """Of the first packet, 0 if it is not whole yet."""
    size = 4 + int.from_bytes(written[:4], "big")
    return size if len(written) >= max(size, 4) else 0


def _path(address: str) -> bytes:
    return parameters(f"<{address}>".encode(errors="surrogateescape"))


def _address(data: bytes) -> str:
    path = data.partition(b"\0")[0]
    return path.removeprefix(b"<").removesuffix(b">").decode(errors="surrogateescape")


def _change(fields: list[Field], name: bytes) -> Callable[[int, Field], None]:
    """Changes the so many-th field of this name; without a value it goes."""

    def change(number: int, to: Field) -> None:
        same = [place for place in range(1, len(fields)) if fields[place][0].lower() == name.lower()]
        place = same[number - 1]
        fields[place : place + 1] = [to] if to[1] else []

    return change
