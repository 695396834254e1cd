"""The mbox format, in the variant called mboxrd, as bytes.

A mail begins with a From_ line, `From sender date`; any line that begins with `From ` begins a mail. In the mail, each line
of any number of `>` and then `From ` has one `>` more than the mail itself; so what was written is what is read. Each mail
is followed by an empty line, which is not part of it. A mail that does not end with a newline is followed by just that
newline, and by nothing if it is the last: this is how such a mail, too, is read back byte for byte.

Lines end in LF or CRLF. Those of a mail whose From_ line ends in a CR that stands alone, as old programs on the Macintosh
wrote them, end in CR too; a mail with an LF in it is never written so.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from .._mail import Mail
from ..delivered import as_delivered
from ..origin import encode

QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)
TO_QUOTE = re.compile(rb"^(>*From )", re.MULTILINE)
QUOTED_CR = re.compile(rb"(?:^|(?<=[\r\n]))>(>*From )")
_FIELD = re.compile(rb"[!-9;-~]+:")
TO_QUOTE_CR = re.compile(rb"(?:^|(?<=\r))(>*From )")
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
PARTS = {
    b"begin": rb"(?<= )",
    b"weekday": b"(?:%b),?" % b"|".join(DAYS),
    b"day": rb"(\d\d?)",
    b"month": b"(%b)" % b"|".join(MONTHS),
    b"clock": rb"(\d\d?):(\d\d)(?::(\d\d))?",
    b"zone": rb"[+-]\d{4}|[A-Z]{2,5}",
}
# Tue Nov 24 05:31:47 2026, as the format has it; Google Takeout puts a zone before the year, others behind it.
ASCTIME = re.compile(
    rb"%(begin)b%(weekday)b +%(month)b +%(day)b +%(clock)b(?: +(%(zone)b))? +([1-9]\d{3})\b"
    rb"(?: +(%(zone)b)\b)?" % PARTS
)
# Tue, 24 Nov 2026 05:31:47 +0100, as it is in the headers of mails.
RFC_5322 = re.compile(
    rb"%(begin)b(?:%(weekday)b +)?%(day)b +%(month)b +([1-9]\d{3}|\d\d) +%(clock)b"
    rb"(?: +(%(zone)b)\b)?" % PARTS
)
ZONES = {b"EST": -5, b"EDT": -4, b"CST": -6, b"CDT": -5, b"MST": -7, b"MDT": -6, b"PST": -8, b"PDT": -7}
NOBODY = "MAILER-DAEMON"
# Of Thunderbird, Eudora, Google Takeout, git (a commit), and public-inbox.
PLACEHOLDERS_BEGIN = "-?x0123456789abcdefm"
PLACEHOLDER = re.compile(r"-?|\?\?\?@\?\?\?|(?:x|\d+)@xxx|[0-9a-f]{40}(?:[0-9a-f]{24})?|mboxrd@z")
LONGEST = 1000
"""What is longer is no From_ line with a date, and need not be searched for one."""
HEAD = 2 * LONGEST
"""So many bytes of a mail are enough for `find_cr`."""


class FromLine(NamedTuple):
    """What a From_ line tells: the sender (empty for a bounce, None if it names none), and when, in UTC if it has no zone."""

    sender: str | None
    received: float | None


def parse_from_line(line: bytes) -> FromLine:
    line = line[:LONGEST].replace(b"\r", b" ")
    match = ASCTIME.search(line, 4)
    if match is not None:
        month, day, hour, minute, second, zone, year, last = match.groups()
        zone = zone or last
    else:
        match = RFC_5322.search(line, 4)
        if match is None:
            sender = line[5:].split(maxsplit=1)[:1]
            return FromLine(_sender(sender[0]) if sender else None, None)
        day, month, year, hour, minute, second, zone = match.groups()
    received = _midnight(year, month, day) + int(hour) * 3600 + int(minute) * 60 + int(second or 0)
    return FromLine(_sender(line[5 : match.start()]), received - _offset(zone) if zone else received)


def _find_date(line: bytes) -> re.Match[bytes] | None:
    return ASCTIME.search(line, 4) or RFC_5322.search(line, 4)


def _offset(zone: bytes) -> int:
    """How many seconds a zone is ahead of UTC. Only those whose names RFC 5322 has are known."""
    if zone[:1] in b"+-":
        return int(zone[:1] + b"1") * (int(zone[1:3]) * 3600 + int(zone[3:]) * 60)
    return ZONES.get(zone, 0) * 3600


@lru_cache(maxsize=64)
def _midnight(year: bytes, month: bytes, day: bytes) -> int:
    number = int(year)
    if number < 100:
        number += 1900 if number >= 50 else 2000
    return timegm((number, MONTHS.index(month) + 1, int(day), 0, 0, 0))


def _sender(raw: bytes) -> str | None:
    sender = raw.decode(errors="surrogateescape").strip()
    if sender in (NOBODY, "<>"):
        return ""
    return None if sender[:1] in PLACEHOLDERS_BEGIN and PLACEHOLDER.fullmatch(sender) else sender


def make_from_line(mail: Mail) -> bytes:
    """The From_ line for a mail: the one that it was read with, as long as no plugin changed the sender."""
    origin = mail.origin
    read = origin.from_line
    if read and read.endswith((b"\n", b"\r")) and parse_from_line(read).sender == mail.envelope:
        return _in_one(read, b"\n" in mail.mime)
    sender = encode(mail.envelope or NOBODY)
    moment = time.gmtime(origin.received)  # now, if nobody knows
    day, month = DAYS[moment.tm_wday], MONTHS[moment.tm_mon - 1]
    clock = b"%2d %02d:%02d:%02d %d" % (moment.tm_mday, *moment[3:6], moment.tm_year)
    return b"From %b %b %b %b\n" % (sender, day, month, clock)


def _in_one(line: bytes, has_lf: bool) -> bytes:
    """The line with no CR but at its end, where it stays unless the mail's lines end otherwise."""
    text = line.rstrip(b"\r\n")
    end = line[len(text) :]
    return text.replace(b"\r", b" ") + (b"\n" if end == b"\r" and has_lf else end)


def find_fault(begin: bytes) -> str | None:
    """What is wrong with a file that begins so, as an mbox; None if nothing is. Empty lines may come first."""
    mails = begin.lstrip(b"\r\n")
    if not mails or mails.startswith(b"From "):
        return None
    hint = "name another file"
    if _FIELD.match(mails):
        hint = "look at a single mail by `mqcore try`, or put it into new/ of a Maildir"
    return f"is no mbox: it begins with {mails[:20]!r}, not with 'From '; {hint}"


def find_cr(head: bytes) -> int:
    """Where a mail begins whose From_ line ends in CR; 0 if that ends in LF, or in CRLF. `head` is the From_ line and more.

    A CR in the middle of a From_ line is none that ends it: that is where there is but one, the date comes behind it, and
    the mail behind that.
    """
    cr = head.find(b"\r")
    if cr < 0:
        return 0
    lf = head.find(b"\n")
    if lf < 0:
        return cr + 1
    rest, behind = head[cr + 1 : lf], head[lf + 1 : lf + 6]
    if lf <= cr + 1 or (rest == b"\r" and behind not in (b"", b"From ")):
        return 0  # CR, CR, LF is what becomes of CRLF where it is converted twice
    if b"\r" not in rest.rstrip(b"\r") and not rest.startswith(b"From ") and not _find_date(head[:cr]):
        whole = head[:lf].rstrip(b"\r").replace(b"\r", b" ")
        date = _find_date(whole)
        if date and date.end() == len(whole) and behind[:1] not in (b"", b"\r", b"\n") and behind != b"From ":
            return 0
    return cr + 1


def split(raw: bytes, *, last: bool) -> tuple[bytes, bytes]:
    """The From_ line and the mail, of what is between the start of one mail and that of the next."""
    cr = find_cr(raw[:HEAD])
    begin = cr or raw.find(b"\n") + 1 or len(raw)
    end = len(raw)
    blank = b"\r" if cr else b"\r\n" if raw.endswith(b"\r\n", 0, begin) else b"\n"
    if cr and raw.endswith((b"\r\r\n", b"\n\r\n"), begin - 1):
        end -= 2
    elif not last:
        end -= len(blank) if raw.endswith(blank, begin) else 1
    elif raw.endswith((b"\n" + blank, b"\r\r") if cr else b"\n" + blank, begin - 1):
        end -= len(blank)
    mime = raw[begin:end]
    if b">From " in mime:
        mime = (QUOTED_CR if cr else QUOTED).sub(rb"\1", mime)
    return raw[:begin], mime


def join(mails: Sequence[Mail], tail: bytes, *, cr: bool = False) -> Iterator[bytes]:
    """What to append for each mail to an mbox that ends with `tail` (its last three bytes, or fewer).

    `cr`: the lines of the last mail in it are known to end in CR.
    """
    for mail in mails:
        from_line = make_from_line(mail)
        before = _divide(tail, cr)
        cr = from_line.endswith(b"\r")
        mime = as_delivered(mail)
        if b"From " in mime:
            mime = (TO_QUOTE_CR if cr else TO_QUOTE).sub(rb">\1", mime)
        if cr:
            blank = b"\r" if not mime or mime.endswith(b"\r") else b""
        else:
            blank = b"" if not mime.endswith(b"\n") else b"\r\n" if from_line.endswith(b"\r\n") else b"\n"
        tail = (mime or from_line)[-3:] + blank
        piece = [b"".join((before, from_line, mime, blank))]
        del mime
        yield piece.pop()  # big ones are not kept while the next one is made


def _divide(tail: bytes, cr: bool) -> bytes:
    """The newline that a From_ line needs before it."""
    if not tail or tail.endswith((b"\n\n", b"\n\r\n")):
        return b""
    if cr:
        return b"" if tail.endswith(b"\r\r") else b"\r"
    return b"\n"
