"""What a milter answers: refusals, and what a message is to be made into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .edits import postfix_edits, sendmail_edits, split_changed
from .events import Message
from .packets import packet, parameters

CHUNK = 65_535
"""Octets of a packet of a new body."""

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
_ENHANCED = re.compile(r"[245](\.\d{1,3}\.\d{1,3})(?= |\Z)")
_ROUTE = re.compile(r"@[^:]*:")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


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


def encode(message: Message, changes: Changes, actions: int, *, is_postfix: bool) -> bytes:
    """The packets that say so. Raises ValueError if the header of the new mail is none, or `actions` has not all of what is
    needed."""
    packets = list(_packets(message, changes, is_postfix))
    for command in {each[4:5] for each in packets}:
        action, what = _NEEDED[command]
        if not actions & action:
            raise ValueError(f"the server did not offer to {what}")
    return b"".join(packets)


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


def address_of(raw: bytes) -> str:
    """Without a source route, which nobody follows (RFC 5321, appendix C)."""
    address = text_of(raw.removeprefix(b"<").removesuffix(b">"))
    return address if (route := _ROUTE.match(address)) is None else address[route.end() :]


def _path(address: str) -> bytes:
    return _bytes(f"<{address}>")


def text_of(data: bytes) -> str:
    """What clients send may be in any encoding, and comes back as it was."""
    return data.decode(errors="surrogateescape")


def _packets(message: Message, changes: Changes, is_postfix: bool) -> Iterator[bytes]:
    if changes.quarantine is not None:
        yield packet(b"q", parameters(_printable(changes.quarantine)))
    if changes.sender is not None:
        yield packet(b"e", parameters(_path(changes.sender)))
    for raw in changes.removed:
        yield packet(b"-", parameters(raw))
        if (without := _path(address_of(raw))) != raw and raw.startswith(b"<@"):  # Postfix tells of a route, and keeps none
            yield packet(b"-", parameters(without))
    for address in changes.added:
        yield packet(b"+", parameters(_path(address)))
    if changes.mime is None:
        return
    fields, body = split_changed(changes.mime, message)
    yield from (postfix_edits if is_postfix else sendmail_edits)(message.fields, fields)
    if body != message.body:
        # In one go: Postfix takes anything in between for the body's end.
        yield from (packet(b"b", body[at : at + CHUNK]) for at in range(0, len(body) or 1, CHUNK))
