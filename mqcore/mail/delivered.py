"""What the server that delivers a mail for good adds to it (RFC 5321, 4.4)."""

from __future__ import annotations

import re

from ._mail import Mail
from .origin import encode

_HEADER_END = re.compile(rb"^\r?\n", re.MULTILINE)
_RETURN_PATH = re.compile(rb"^return-path[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)


def as_delivered(mail: Mail) -> bytes:
    """The mail as a mailbox keeps it. One from the network says from whom and to whom it came, in place of whatever it said of
    the former before; any other stays as it is."""
    mime = mail.mime
    if not mail.origin.is_traced:
        return mime
    end = b"\n" if _ends_in_lf(mime) else b"\r\n"
    top = b""
    if mail.envelope is not None:
        top = b"Return-Path: <%b>%b" % (encode(mail.envelope), end)
        mime = _without_return_path(mime, end)
    if mail.recipient is not None:
        top += b"Delivered-To: %b%b" % (encode(mail.recipient), end)
    return top + mime


def _ends_in_lf(mime: bytes) -> bool:
    """Whether its first line does, and not in CR LF."""
    at = mime.find(b"\n")
    return at >= 0 and mime[at - 1 : at] != b"\r"


def _without_return_path(mime: bytes, end: bytes) -> bytes:
    # The header ends there at the latest. Nearly all mails have none, and this finds that out in no time.
    if b"return-path" not in mime[: mime.find(b"\n" + end)].lower():
        return mime
    match = _HEADER_END.search(mime)
    size = match.start() if match else len(mime)
    if not _RETURN_PATH.search(mime, 0, size):
        return mime
    return _RETURN_PATH.sub(b"", mime[:size]) + mime[size:]
