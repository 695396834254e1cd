"""Values of header fields that are not plain and short: folded, encoded, decoded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.charset import Charset
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import formataddr, getaddresses
from itertools import chain, repeat

LINE = 78
"""Octets of a line, where there is a blank to fold it at (RFC 5322, 2.1.1)."""
WORD_LINE = 76
"""The same with encoded words in it (RFC 2047, 2)."""
UTF8 = Charset("utf-8")
OF_ADDRESSES = frozenset(
    f"{prefix}{name}" for prefix in ("", "resent-") for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
)

FOLDS = re.compile(rb"\r?\n(?=[ \t]+[^ \t\r\n])")
BLANKS = re.compile(rb"(?<=[^ \t])[ \t]+(?=[^ \t])")
ENDS = re.compile("[\r\n\0]")


def encode(name: str, value: object, line_end: bytes) -> bytes:
    """The value as it is written, in one line or more. ValueError: it cannot be."""
    if isinstance(value, bytes):
        lines = FOLDS.split(value.strip(b" \t"))
        if any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines):
            raise ValueError(f"a header field may not have a NUL, nor a CR or LF that does not fold it: {name}: {value!r}")
        return line_end.join(lines)
    if not isinstance(value, str):
        raise TypeError(f"the value of a header field is a str or bytes, not {value!r}")
    if ENDS.search(value):
        raise ValueError(f"a header field is one line, without CR, LF or NUL, folded when it is written: {name}: {value!r}")
    value = value.strip(" \t")
    if value.isascii():
        return _fold(value.encode(), len(name) + 2, line_end)
    try:
        value.encode()
    except UnicodeEncodeError:  # it stands for octets that are no UTF-8, and was read like that
        return _fold(value.encode(errors="surrogateescape"), len(name) + 2, line_end)
    if name.lower() in OF_ADDRESSES:
        return _fold(_encode_addresses(name, value), len(name) + 2, line_end)
    return line_end.join(_words(value, len(name) + 2))


def decode(value: str) -> str:
    """With encoded words decoded, as far as they can be."""
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value


def _fold(value: bytes, column: int, line_end: bytes) -> bytes:
    """Folded at blanks, which stay as they are, so that no line is long, as far as that goes. `column`: where it begins."""
    lines = []
    start = 0
    place = -1  # the last blank at which this line can be folded
    for match in BLANKS.finditer(value):
        if place >= 0 and column + match.start() - start > LINE:
            lines.append(value[start:place])
            start, column = place, 0
        place = match.start()
    if place > start and column + len(value) - start > LINE:
        lines.append(value[start:place])
        start = place
    return line_end.join([*lines, value[start:]])


def _words(text: str, column: int) -> Iterator[bytes]:
    """Encoded words (RFC 2047), each a line of its own, with a blank before all but the first."""
    lengths = chain([WORD_LINE - column], repeat(WORD_LINE - 1))
    for number, word in enumerate(UTF8.header_encode_lines(text, lengths)):
        yield (b" " if number else b"") + (word or "").encode()


def _encode_addresses(name: str, value: str) -> bytes:
    """Where it is addresses, only the names of people can be encoded words."""
    encoded = []
    for person, address in getaddresses([value]):
        if not address or not address.isascii():
            raise ValueError(
                f"this is no list of addresses, or has one that is not ASCII, which is written as bytes: {name}: {value!r}"
            )
        if person.isascii():
            encoded.append(formataddr((person, address)).encode())
        else:
            encoded.append(b" ".join(word.strip() for word in _words(person, 0)) + b" <" + address.encode() + b">")
    return b", ".join(encoded)
