"""What a server says: replies (RFC 5321, 4.2), of one line or several."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

MAX_REPLY = 1 << 16
"""Octets of one reply, all its lines together. A server that goes on for longer says nothing that anybody waits for."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?\r*", re.DOTALL).fullmatch
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class ProtocolError(Exception):
    """What came is no reply, or one that nothing was asked for. Nothing that the connection brings can be trusted any more."""


class Reply(NamedTuple):
    """What the server said to one recipient of a mail, or to a command."""

    state: str
    """What it is the reply to: greeting, ehlo, starttls, auth, mailfrom, rcptto, data (the command), message (all of it is
    sent), rset or quit; `connect` where it did not come to that."""
    code: int | None
    """None if none came, as the connection broke. In the state `message`, the server may have the mail then, or not."""
    text: str
    """Its lines, joined by blanks."""

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
        """Whether it is the reply to a recipient for whom there is to be another transaction (RFC 5321, 4.5.3.1.10)."""
        return self.state == "rcptto" and self.code == 452 and ("4.5.3" in self.text or "too many" in self.text.lower())

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class ReplyReader:
    """Bytes in, in whatever pieces; whole replies out. Lines may end in LF alone, as everybody but the RFC has it."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._texts: list[str] = []
        """The lines of a reply that has more to come."""
        self._size = 0

    @property
    def is_within(self) -> bool:
        """Whether more is here than the replies that were taken."""
        return bool(self._rest or self._lines or self._texts)

    def feed(self, data: bytes) -> None:
        """What came from the server."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(lines)

    def next(self) -> tuple[int, list[str]] | None:
        """The next reply, its code and its lines; None if it is not whole yet. Raises ProtocolError."""
        while self._lines:
            line = self._lines.popleft()
            match = _LINE(line)
            if match is None:
                raise ProtocolError(f"this is no reply of SMTP: {_clean(line[:200])}")
            code, separator, text = match.groups()
            self._limit(len(line))
            self._size += len(line)
            self._texts.append(_clean(text or b""))
            if separator != b"-":
                reply = (int(code), self._texts)
                self._texts, self._size = [], 0
                return reply
        self._limit(len(self._rest))
        return None

    def _limit(self, more: int) -> None:
        if self._size + more > MAX_REPLY:
            raise ProtocolError("a reply has no end")


def _clean(line: bytes) -> str:
    """On one line, whatever it is."""
    return " ".join(_CONTROL.sub("?", line.decode(errors="replace").rstrip("\r").replace("\t", " ")).split())
