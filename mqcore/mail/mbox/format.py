"""The mbox format, in the variant called mboxrd, as bytes.

A mail begins with a line `From sender date`; any line that begins with `From ` begins a mail. In the mail, each line of
any number of `>` and then `From ` has one `>` more than the mail itself; so what was written is what is read. Each mail
is followed by an empty line, which is not part of it. A mail that does not end with a newline is followed by just that
newline, and by nothing if it is the last: this is how such a mail, too, is read back byte for byte.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from .._mail import Mail
from ..message import encode

QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)
TO_QUOTE = re.compile(rb"^(>*From )", re.MULTILINE)
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
FROM_LINE = re.compile(
    rb"From (?P<sender>.*?) +(?:%b),? +(?P<month>%b) +(?P<day>\d\d?)"
    rb" +(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?: +[A-Z]{3,4})? +(?P<year>[1-9]\d{3})\b"
    % (b"|".join(DAYS), b"|".join(MONTHS))
)
NOBODY = "MAILER-DAEMON"


class FromLine(NamedTuple):
    """What a From_ line tells: the sender (empty for a bounce), and when, taken as UTC."""

    sender: str | None
    received: float | None


def parse_from_line(line: bytes) -> FromLine:
    line = line[:1000]  # the pattern takes quadratic time on a line of blanks
    match = FROM_LINE.match(line)
    if match is None:
        sender = line[5:].split(maxsplit=1)[:1]
        return FromLine(_sender(sender[0]) if sender else None, None)
    raw, month, day, hour, minute, second, year = match.groups()
    return FromLine(_sender(raw), _midnight(year, month, day) + int(hour) * 3600 + int(minute) * 60 + int(second or 0))


@lru_cache(maxsize=64)
def _midnight(year: bytes, month: bytes, day: bytes) -> int:
    return timegm((int(year), MONTHS.index(month) + 1, int(day), 0, 0, 0))


def _sender(raw: bytes) -> str:
    sender = raw.decode(errors="surrogateescape")
    return "" if sender == NOBODY else sender


def make_from_line(mail: Mail) -> bytes:
    """The From_ line for a mail: the one that it was read with, as long as no plugin changed the sender."""
    origin = mail.origin
    read = origin.from_line
    if read and read.endswith(b"\n") and parse_from_line(read).sender == mail.envelope:
        return read
    sender = encode(mail.envelope or NOBODY)
    moment = time.gmtime(origin.received)  # now, if nobody knows
    day, month = DAYS[moment.tm_wday], MONTHS[moment.tm_mon - 1]
    clock = b"%2d %02d:%02d:%02d %d" % (moment.tm_mday, *moment[3:6], moment.tm_year)
    return b"From %b %b %b %b\n" % (sender, day, month, clock)


def find_fault(begin: bytes) -> str | None:
    """What is wrong with a file that begins so, as an mbox; None if nothing is. Empty lines may come first."""
    mails = begin.lstrip(b"\r\n")
    if not mails or mails.startswith(b"From "):
        return None
    return f"is no mbox: it begins with {mails[:20]!r}, not with 'From '; name another file"


def split(raw: bytes, *, last: bool) -> tuple[bytes, bytes]:
    """The From_ line and the mail, of what is between the start of one mail and that of the next."""
    begin = raw.find(b"\n") + 1 or len(raw)
    end = len(raw)
    blank = b"\r\n" if raw.endswith(b"\r\n", 0, begin) else b"\n"
    if not last:
        end -= len(blank) if raw.endswith(blank, begin) else 1
    elif raw.endswith(b"\n" + blank, begin - 1):
        end -= len(blank)
    mime = raw[begin:end]
    if b">From " in mime:
        mime = QUOTED.sub(rb"\1", mime)
    return raw[:begin], mime


def join(mails: Sequence[Mail], tail: bytes) -> Iterator[bytes]:
    """What to append for each mail to an mbox that ends with `tail` (its last three bytes, or fewer)."""
    for mail in mails:
        from_line = make_from_line(mail)
        mime = mail.mime
        if b"From " in mime:
            mime = TO_QUOTE.sub(rb">\1", mime)
        blank = b"" if not mime.endswith(b"\n") else b"\r\n" if from_line.endswith(b"\r\n") else b"\n"
        before = b"\n" if tail and not tail.endswith((b"\n\n", b"\n\r\n")) else b""
        yield b"".join((before, from_line, mime, blank))
        tail = (mime or from_line)[-3:] + blank
