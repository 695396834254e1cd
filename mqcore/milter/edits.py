"""What plugins changed in the header of a mail, as the packets that say so.

Postfix and Sendmail understand the same packets, and do different things. Postfix counts the place of an insertion among the
fields that it sent, with one of its own on top, and applies each packet to what the one before left. Sendmail counts fields
that nobody sees; only the top of the header is a place to rely on. Places of changes are numbers among the fields of one
name, in both.
"""

from __future__ import annotations

import difflib
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .events import Field, Message
from .packets import packet, parameters

MOST_COMPARED = 500
"""Fields in a row that are compared with each other, which takes the square of the time. Of more, all are replaced."""

_BAD_NAME = re.compile(rb"[\x00-\x20\x7f]")
_LINE_END = re.compile(rb"\r?\n")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_EMPTY_HEADER = re.compile(rb"\r?\n|\Z")

Edit: TypeAlias = Callable[[Sequence[Field], Sequence[Field]], list[bytes]]


def join(fields: Sequence[Field], body: bytes) -> bytes:
    """The whole mail, with the line ends of SMTP."""
    parts: list[bytes] = []
    for name, value in fields:
        parts += name, b":", _LINE_END.sub(b"\r\n", value) if b"\n" in value else value, b"\r\n"
    parts += b"\r\n", body
    return b"".join(parts)


def split(mime: bytes) -> tuple[list[Field], bytes]:
    """Fields and body of a mail. Raises ValueError for a header that is none."""
    if (empty := _EMPTY_HEADER.match(mime)) is not None:
        return [], mime[empty.end() :]
    end = _HEADER_END.search(mime)
    head, body = (mime, b"") if end is None else (mime[: end.start()], mime[end.end() :])
    fields: list[Field] = []
    for line in _LINE_END.split(head.removesuffix(b"\n").removesuffix(b"\r")):
        name, colon, value = line.partition(b":")
        if fields and line[:1] in (b" ", b"\t"):
            fields[-1] = fields[-1][0], fields[-1][1] + b"\n" + line
        elif not colon or not name or _BAD_NAME.search(name):
            raise ValueError(f"the line {line[:80]!r} among the header is no field")
        else:
            fields.append((name, value))
    return fields, body


def split_changed(mime: bytes, message: Message) -> tuple[list[Field], bytes]:
    """The same, of a mail that was made of this message. Most only get fields on top."""
    if mime.endswith(message.mime):
        top = mime[: len(mime) - len(message.mime)]
        if top.endswith(b"\n") and not _HEADER_END.search(top) and not _EMPTY_HEADER.match(top):
            return split(top)[0] + message.fields, message.body
    return split(mime)


def postfix_edits(old: Sequence[Field], new: Sequence[Field]) -> list[bytes]:
    """Makes `new` of `old`, in order, byte for byte.

    Insertions come first, from the last to the first, so that each place is one of `old`. Changes come then, also from the
    last to the first: so the number of a field among those of its name is what it was after the insertions.
    """
    inserted: list[bytes] = []
    merged: list[tuple[bytes, bytes | None]] = []  # name, and the new value, empty to delete it, if there is one
    for gone, come, at in _differences(old, new):
        same = 0 if come is None else _alike(gone, come)
        for number, (name, _) in enumerate(gone):
            merged.append((name, None if come is None else come[number][1] if number < same else b""))
        for name, value in (come or ())[same:]:
            inserted.append(_insert(at + len(gone) + 1, name, value))
            merged.append((name, None))
    return inserted[::-1] + _changes(merged)


def sendmail_edits(old: Sequence[Field], new: Sequence[Field]) -> list[bytes]:
    """Makes the same content: what is new, and changed in more than its value, stands on top.

    Changes come first, when all is as it was sent.
    """
    merged: list[tuple[bytes, bytes | None]] = []
    tops: list[Field] = []
    for gone, come, _ in _differences(old, new):
        same = 0 if come is None else _alike(gone, come)
        for number, (name, _) in enumerate(gone):
            merged.append((name, None if come is None else come[number][1] if number < same else b""))
        tops += (come or ())[same:]
    return _changes(merged) + [_insert(1, name, value) for name, value in reversed(tops)]


def _differences(old: Sequence[Field], new: Sequence[Field]) -> list[tuple[Sequence[Field], Sequence[Field] | None, int]]:
    """Parts of `old` in order, with what comes in place of each; None: it stays. And where each begins."""
    begin, end = 0, 0
    least = min(len(old), len(new))
    while begin < least and old[begin] == new[begin]:
        begin += 1
    while end < least - begin and old[-1 - end] == new[-1 - end]:
        end += 1
    middle_old, middle_new = old[begin : len(old) - end], new[begin : len(new) - end]
    parts: list[tuple[Sequence[Field], Sequence[Field] | None, int]] = [(old[:begin], None, 0)]
    if not middle_old or not middle_new or max(len(middle_old), len(middle_new)) > MOST_COMPARED:
        parts.append((middle_old, middle_new, begin))
    else:
        matcher = difflib.SequenceMatcher(None, middle_old, middle_new, autojunk=False)
        for tag, a, b, c, d in matcher.get_opcodes():
            parts.append((middle_old[a:b], None if tag == "equal" else middle_new[c:d], begin + a))
    parts.append((old[len(old) - end :], None, len(old) - end))
    return parts


def _alike(gone: Sequence[Field], come: Sequence[Field]) -> int:
    """How many at the beginning differ in their value only, which can be changed; an empty one would delete the field."""
    count = 0
    while count < min(len(gone), len(come)) and gone[count][0] == come[count][0] and come[count][1]:
        count += 1
    return count


def _changes(merged: Sequence[tuple[bytes, bytes | None]]) -> list[bytes]:
    if all(value is None for _, value in merged):
        return []
    found: list[bytes] = []
    seen: Counter[bytes] = Counter()
    for name, value in merged:
        seen[name.lower()] += 1
        if value is not None:
            found.append(packet(b"m", struct.pack("!I", seen[name.lower()]) + parameters(name, value)))
    return found[::-1]


def _insert(place: int, name: bytes, value: bytes) -> bytes:
    return packet(b"i", struct.pack("!I", place) + parameters(name, value))
