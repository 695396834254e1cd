"""One connection of a mail server that asks a milter: what it sends becomes events, and answers become packets.

Version 6 of the protocol, as libmilter's `mfdef.h` and Postfix's `milter8.c` have it. It is written down nowhere else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .edits import join, postfix_edits, sendmail_edits, split_changed
from .events import Abort, Connect, Event, Field, Goodbye, Helo, MailFrom, Message, RcptTo, Wanted
from .packets import MilterError, PacketReader, packet, parameters
from .packets import split as split_texts

VERSION = 6
ACTIONS = 0x1FF
"""All there are: to add, change and delete fields and recipients, to replace the sender and the body, to quarantine."""

NO_BODY, NO_FIELDS, NO_END_OF_HEADER, NO_UNKNOWN, NO_DATA = 0x10, 0x20, 0x40, 0x100, 0x200
"""What need not be sent."""
REPLY_FIELD, REPLY_DATA, REPLY_UNKNOWN, REPLY_END_OF_HEADER, REPLY_BODY = 0x80, 0x10000, 0x20000, 0x40000, 0x80000
REPLY_CONNECT, REPLY_HELO, REPLY_SENDER, REPLY_RECIPIENT = 0x1000, 0x2000, 0x4000, 0x8000
"""What gets no reply, so that the server does not wait for one."""
LEADING_SPACE = 0x100000
"""Fields are sent with the blank behind the colon, byte for byte."""

CHUNK = 65_535
"""Octets of a packet of a new body."""
FIELD_OVERHEAD = 128
"""Octets that a field takes in memory beside its own."""
MAX_MESSAGE = 256 << 20

_ALWAYS = LEADING_SPACE | NO_UNKNOWN | REPLY_FIELD | REPLY_END_OF_HEADER | REPLY_BODY | REPLY_DATA | REPLY_UNKNOWN
_CONTENT = NO_BODY | NO_FIELDS | NO_END_OF_HEADER | NO_DATA
_OPTIONS = struct.Struct("!III")
_MESSAGE_STAGES = b"MRTLNBE"
"""Whose macros are those of one message."""
_GIVING_UP = (b"A", b"Q", b"K")
"""Commands that need not wait for an answer."""
_NEEDED = {
    b"i": (0x1, "add a field"),
    b"b": (0x2, "replace the body"),
    b"+": (0x4, "add a recipient"),
    b"-": (0x8, "take a recipient away"),
    b"m": (0x10, "change a field"),
    b"q": (0x20, "keep a message in quarantine"),
    b"e": (0x40, "replace the sender"),
}
"""What of ACTIONS a packet needs, in numbers and in words."""
_DEFINE = ord("D")
_ENHANCED = re.compile(r"[245](\.\d{1,3}\.\d{1,3})(?= |\Z)")
_ROUTE = re.compile(r"@[^:]*:")
_CONTROL = re.compile("[\x00-\x1f\x7f]")

TOO_BIG = 552, "5.3.4 this message is bigger than this filter takes"


class Changes(NamedTuple):
    """What a message is to be made into. Addresses stand without their angle brackets."""

    sender: str | None = None
    """Another one than the server has."""
    removed: Sequence[bytes] = ()
    """Recipients, as `RcptTo.raw` has them."""
    added: Sequence[str] = ()
    mime: bytes | None = None
    """None where it stays as it is."""
    quarantine: str | None = None
    """Why the server shall keep it and deliver it to nobody."""


class MilterProtocol:
    """Feed it by `receive`, take events by `next_event` and bytes to send by `take_output`.

    Where `due` is True an answer is: `proceed`, `refuse`, `discard`, or for a Message also `finish`. Until one was given there
    is no next event, but for an Abort or a Goodbye, which make it void. Errors are MilterErrors; then the connection is to be
    closed.
    """

    def __init__(self, wanted: Wanted, max_message: int = MAX_MESSAGE) -> None:
        self.wanted = wanted
        """What this server will ask about. Fixed once it began, as it is agreed upon then."""
        self.is_postfix = False
        """Whether that is who asks, as its macro `v` says; Sendmail does not say what it is, unless it is told to."""
        self.due = False
        self.is_ended = False
        """Whether the server said that it is done with this connection."""
        self._max_message = max_message
        self._reader = PacketReader()
        self._output: list[bytes] = []
        self._macros: dict[bytes, bytes] = {}
        """By stage, as they came: most are never looked at."""
        self._next_sender = b""
        self._merged: dict[str, str] | None = None
        self._commands = _FIRST
        self._actions = ACTIONS
        self._tls: str | None = None
        self._event: Event | None = None
        self._in_transaction = False
        self._fields: list[Field] = []
        self._body: list[bytes] = []
        self._size = 0

    # What the server says

    def receive(self, data: bytes) -> None:
        self._reader.feed(data)

    @property
    def buffered(self) -> int:
        """Octets that wait until an answer was given."""
        return self._reader.buffered

    @property
    def in_transaction(self) -> bool:
        return self._in_transaction

    @property
    def macros(self) -> dict[str, str]:
        """What the server says beside, by names without braces, as of the last event."""
        if self._merged is None:
            self._merged = {}
            for raw in self._macros.values():
                self._merged.update((_plain(name), _text(value)) for name, value in _pairs(raw))
        return self._merged

    def macro(self, name: bytes) -> str | None:
        """One of them."""
        for raw in reversed(self._macros.values()):
            if name in raw:
                for found, value in _pairs(raw):
                    if found.strip(b"{}") == name:
                        return _text(value)
        return None

    def next_event(self) -> Event | None:
        """The next one, if all of it has come. While an answer is due it can only be that nobody waits for that any more."""
        reader = self._reader
        while not self.is_ended and (not self.due or reader.peek() in _GIVING_UP):
            if self._in_transaction:
                self._take_fields()
            received = reader.next()
            if received is None:
                return None
            command, data = received
            handle = self._commands.get(command)
            if handle is None:
                raise self._misplaced(command)
            event = handle(self, data)
            if event is not None:
                self._event = event
                return event
        return None

    def _misplaced(self, command: bytes) -> MilterError:
        if self._commands is _FIRST:
            return MilterError(f"the command {command!r} comes before the versions were agreed upon")
        return MilterError(f"the command {command!r} is unknown")

    def _negotiate(self, data: bytes) -> None:
        if self._commands is not _FIRST or len(data) < _OPTIONS.size:
            raise MilterError("the versions are agreed upon once, in 12 octets")
        version, actions, steps = _OPTIONS.unpack_from(data)
        if version < VERSION:
            raise MilterError(f"the server speaks version {version} of the milter protocol, and {VERSION} is needed")
        needed = self._steps()
        if needed & ~steps:
            raise MilterError(f"the server does not offer all of what is needed: steps {needed & ~steps:#x} are missing")
        self._commands = _COMMANDS
        self._actions = actions & ACTIONS
        self._output.append(packet(b"O", _OPTIONS.pack(VERSION, self._actions, needed)))

    def _steps(self) -> int:
        wanted, steps = self.wanted, _ALWAYS
        for is_wanted, step in zip(wanted, (REPLY_CONNECT, REPLY_HELO, REPLY_SENDER, REPLY_RECIPIENT, _CONTENT), strict=True):
            if not is_wanted:
                steps |= step
        return steps

    def _define(self, data: bytes) -> None:
        """Lists may be empty, or odd. Those of a command come before it, and the same again before each field."""
        stage = data[:1]
        if stage == b"M":  # what is known of the message before it is not known of this one
            self._next_sender = data
            return
        if stage == b"C":
            self._macros.clear()
            self.is_postfix = any(name == b"v" and value.startswith(b"Postfix") for name, value in _pairs(data))
        if self._macros.get(stage) != data:
            self._macros[stage] = data
            self._merged = None

    def _connect(self, data: bytes) -> Event:
        name, _, rest = data.partition(b"\0")
        family, port, address = rest[:1], rest[1:3], rest[3:].split(b"\0")[0]
        if family not in (b"4", b"6", b"L", b"U") or (family != b"U" and len(port) < 2):
            raise MilterError("what it says of its client makes no sense")
        self._tls = None
        self.due = self.wanted.connect
        is_network = family in (b"4", b"6")
        peer = _text(address).removeprefix("IPv6:") if is_network else ""
        known = "" if name.startswith(b"[") or name == b"unknown" else _text(name)
        return Connect(peer, int.from_bytes(port, "big") if is_network else 0, known)

    def _helo(self, data: bytes) -> Event:
        version = self.macro(b"tls_version") or None
        began, self._tls = version is not None and version != self._tls, version
        self.due = self.wanted.secure
        return Helo(_text(data.split(b"\0")[0]), began)

    def _mail(self, data: bytes) -> Event:
        address, *more = split_texts(data) or [b""]
        self._forget()
        self._macros[b"M"], self._next_sender = self._next_sender, b""
        self._in_transaction = True
        self.due = self.wanted.sender
        return MailFrom(_address(address), [_text(one) for one in more])

    def _rcpt(self, data: bytes) -> Event:
        if not self._in_transaction:
            raise MilterError("a recipient comes outside of a transaction")
        raw, *more = split_texts(data) or [b""]
        self.due = self.wanted.recipient
        return RcptTo(_address(raw), raw, [_text(one) for one in more])

    def _field(self, data: bytes) -> None:
        if self._has_room(len(data) + FIELD_OVERHEAD):
            name, _, value = data.removesuffix(b"\0").partition(b"\0")
            self._fields.append((name, value))

    def _take_fields(self) -> None:
        """Most packets are fields, each behind its macros, which are the same each time."""
        known, add, size = self._macros.get(b"L"), self._fields.append, self._size
        for command, data in self._reader.next_among(b"LD"):
            if command == _DEFINE:
                if data != known:
                    self._define(data)
                    known = self._macros.get(b"L")
            else:
                size += len(data) + FIELD_OVERHEAD
                if size <= self._max_message:
                    name, _, value = data.removesuffix(b"\0").partition(b"\0")
                    add((name, value))
        self._size = size
        if size > self._max_message:
            self._fields, self._body = [], []

    def _chunk(self, data: bytes) -> None:
        if self._has_room(len(data)):
            self._body.append(data)

    def _has_room(self, size: int) -> bool:
        if not self._in_transaction:
            raise MilterError("a message comes outside of a transaction")
        self._size += size
        if self._size > self._max_message:
            self._fields, self._body = [], []
        return self._size <= self._max_message

    def _end(self, data: bytes) -> Event | None:
        if not self._in_transaction:
            raise MilterError("a message ends outside of a transaction")
        if data:
            self._chunk(data)
        self.due = True
        if self._size > self._max_message:
            self.refuse(*TOO_BIG)
            self._forget_content()
            return None
        body, self._body = b"".join(self._body), []
        return Message(self._fields, body, join(self._fields, body))

    def _abort(self, data: bytes) -> Event:
        self.due = False
        self._forget()
        return Abort()

    def _quit(self, data: bytes) -> Event:
        self.due = False
        self._forget()
        self.is_ended = True
        return Goodbye(False)

    def _quit_and_connect(self, data: bytes) -> Event:
        self.due = False
        self._forget()
        self._macros.clear()
        return Goodbye(True)

    def _ignore(self, data: bytes) -> None:
        pass

    def _forget(self) -> None:
        """The next transaction, if there is one, has nothing to do with this one."""
        self._forget_content()
        self._macros = {stage: known for stage, known in self._macros.items() if stage not in _MESSAGE_STAGES}
        self._merged = None

    def _forget_content(self) -> None:
        self._in_transaction = False
        self._fields, self._body, self._size = [], [], 0

    # What is answered

    def take_output(self) -> bytes:
        output, self._output = b"".join(self._output), []
        return output

    def proceed(self) -> None:
        """The server may go on. After a Message: it takes it as it is."""
        self._answer(packet(b"c"))

    def refuse(self, code: int, text: str) -> None:
        """What the server tells its client. `code` is 4xx or 5xx; the enhanced code (RFC 3463) gets its class, or is
        added."""
        self._answer(reply(code, text))

    def discard(self) -> None:
        """The server says that it took the message, and drops it. Not for Connect and Helo."""
        self._answer(packet(b"d"))

    def encode(self, message: Message, changes: Changes) -> bytes:
        """What `finish` takes. Raises ValueError if the header of the new mail is none, or the server did not offer to do
        that."""
        packets = list(self._changes(message, changes))
        for command in {each[4:5] for each in packets}:
            action, what = _NEEDED[command]
            if not self._actions & action:
                raise ValueError(f"the server did not offer to {what}")
        return b"".join(packets)

    def finish(self, changes: bytes) -> None:
        """The server takes the message with these changes, which `encode` made."""
        self._answer(changes + packet(b"c"))

    @property
    def takes_progress(self) -> bool:
        """Whether the server may be told so while an answer is due: Sendmail takes that for an error unless all of a message
        has come."""
        return self.is_postfix or isinstance(self._event, Message)

    def progress(self) -> None:
        """An answer will come."""
        if not self.due or not self.takes_progress:
            raise RuntimeError("nobody waits who would understand that")
        self._output.append(packet(b"p"))

    def _answer(self, data: bytes) -> None:
        if not self.due:
            raise RuntimeError("no answer is due")
        self.due = False
        self._output.append(data)
        if isinstance(self._event, Message):
            self._event = None
            self._forget_content()

    def _changes(self, message: Message, changes: Changes) -> Iterator[bytes]:
        if changes.quarantine is not None:
            yield packet(b"q", parameters(_printable(changes.quarantine)))
        if changes.sender is not None:
            yield packet(b"e", parameters(_path(changes.sender)))
        for raw in changes.removed:
            yield packet(b"-", parameters(raw))
            if (without := _path(_address(raw))) != raw and raw.startswith(b"<@"):  # Postfix tells of a route, and keeps none
                yield packet(b"-", parameters(without))
        for address in changes.added:
            yield packet(b"+", parameters(_path(address)))
        if changes.mime is None:
            return
        fields, body = split_changed(changes.mime, message)
        yield from (postfix_edits if self.is_postfix else sendmail_edits)(message.fields, fields)
        if body != message.body:
            # In one go: Postfix takes anything in between for the body's end.
            yield from (packet(b"b", body[at : at + CHUNK]) for at in range(0, len(body) or 1, CHUNK))


def reply(code: int, text: str) -> bytes:
    """Servers read it as a format, so a % is doubled, and up to a NUL."""
    found = _ENHANCED.match(text)
    line = f"{code // 100}{found[1]}{text[found.end() :]}" if found else f"{code // 100}.7.1 {text}"
    return packet(b"y", f"{code} ".encode() + _printable(line).replace(b"%", b"%%") + b"\0")


def _printable(text: str) -> bytes:
    return _bytes(_CONTROL.sub("?", text))


def _bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # what plugins write may be no text in any encoding
        return text.encode(errors="replace")


def _text(data: bytes) -> str:
    """What clients send may be in any encoding, and comes back as it was."""
    return data.decode(errors="surrogateescape")


def _pairs(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and values of macros, behind the letter of their stage."""
    texts = split_texts(raw[1:])
    return zip(texts[::2], texts[1::2], strict=False)


def _plain(name: bytes) -> str:
    return _text(name.removeprefix(b"{").removesuffix(b"}"))


def _address(raw: bytes) -> str:
    """Without a source route, which nobody follows (RFC 5321, appendix C)."""
    address = _text(raw.removeprefix(b"<").removesuffix(b">"))
    return address if (route := _ROUTE.match(address)) is None else address[route.end() :]


def _path(address: str) -> bytes:
    return _bytes(f"<{address}>")


_FIRST: dict[bytes, Callable[[MilterProtocol, bytes], Event | None]] = {b"O": MilterProtocol._negotiate}
_COMMANDS: dict[bytes, Callable[[MilterProtocol, bytes], Event | None]] = {
    b"O": MilterProtocol._negotiate,
    b"D": MilterProtocol._define,
    b"C": MilterProtocol._connect,
    b"H": MilterProtocol._helo,
    b"M": MilterProtocol._mail,
    b"R": MilterProtocol._rcpt,
    b"T": MilterProtocol._ignore,
    b"L": MilterProtocol._field,
    b"N": MilterProtocol._ignore,
    b"B": MilterProtocol._chunk,
    b"E": MilterProtocol._end,
    b"U": MilterProtocol._ignore,
    b"A": MilterProtocol._abort,
    b"Q": MilterProtocol._quit,
    b"K": MilterProtocol._quit_and_connect,
}
