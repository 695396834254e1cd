"""One message as it comes in by SMTP, between DATA and the line that ends it."""

from __future__ import annotations

import re

from .syntax import Wrong

MAX_HOPS = 100
"""So many servers a message may have passed (RFC 5321, 6.3): in more there is a loop."""

_END = b"\r\n.\r\n"
_HOPS = re.compile(rb"\r\nreceived[ \t]*:", re.IGNORECASE)


class Incoming:
    """Collects the message, finds its end, and then gives it as it was before it was made ready for SMTP.

    Only CR LF, dot, CR LF ends it. Whatever else another server could take for its end (SMTP smuggling) has a CR or LF
    that stands alone, for which the message as a whole is refused. Sizes are in octets.
    """

    __slots__ = ("_discarded", "_fault", "_max_line", "_max_size", "_text", "size")

    def __init__(self, max_size: int, max_line: int) -> None:
        self._max_size = max_size
        self._max_line = max_line
        self._text = bytearray(b"\r\n")  # so that its first line is like any other
        self._fault: str | None = None
        self._discarded = 0
        self.size = 0
        """What has come so far, as it was sent, without what may belong to the line that ends it."""

    @property
    def kept(self) -> int:
        """What of it is in memory."""
        return len(self._text)

    @property
    def fault(self) -> str | None:
        """The reply that it will be refused with, as far as is known before its end."""
        return self._fault

    def refuse(self, reply: str) -> None:
        """Keep nothing of it."""
        if self._fault is None:
            self._fault = reply
        self._discard()

    def _discard(self) -> None:
        self._discarded += len(self._text)
        del self._text[: -len(_END)]  # the line that ends it may have begun
        self._discarded -= len(self._text)

    def take(self, data: bytes) -> int | None:
        """How much of `data` belongs to the message, if its end is there; None if all does, and more must come."""
        text = self._text
        before = len(text)
        text += data
        end = text.find(_END, max(before - len(_END) + 1, 0))
        if end >= 0:
            del text[end + 2 :]
        self.size = len(text) + self._discarded - (2 if end >= 0 else 4)
        if self.size > self._max_size:
            self.refuse(f"552 5.3.4 a message may have {self._max_size} octets")
        if end >= 0:
            return end + len(_END) - before
        if self._fault is not None:
            self._discard()
        return None

    @property
    def is_endless(self) -> bool:
        """Whether it is far beyond all limits, so that it is no use to wait for its end."""
        return self.size > 3 * self._max_size

    def finish(self) -> bytes:
        """The message, once `take` has found its end. Raises Wrong, with the reply, if it is not to be taken."""
        if self._fault is not None:
            raise Wrong(self._fault)
        text = bytes(self._text)
        lines = text.count(b"\r\n")
        if text.count(b"\n") != lines or text.count(b"\r") != lines:
            raise Wrong("554 5.6.0 lines of a message end in CR LF, and neither may stand alone")
        if b"\0" in text:
            raise Wrong("554 5.6.0 a message may not have NUL in it")
        if self._has_long_line(text):
            raise Wrong("554 5.6.0 a line of this message is too long")
        if lines > MAX_HOPS and _goes_round(text):
            raise Wrong(f"554 5.4.6 this mail goes round in a loop: it has more than {MAX_HOPS} Received lines")
        return text.replace(b"\r\n.", b"\r\n")[2:]

    def _has_long_line(self, text: bytes) -> bool:
        """In strides, as most messages are shorter than one."""
        at = 0
        while len(text) - at > self._max_line:
            at = text.rfind(b"\n", at, at + self._max_line) + 1
            if at == 0:
                return True
        return False


def _goes_round(text: bytes) -> bool:
    end = text.find(b"\r\n\r\n")
    return len(_HOPS.findall(text, 0, end if end >= 0 else len(text))) > MAX_HOPS
