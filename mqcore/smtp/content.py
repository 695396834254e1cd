"""A mail as it is sent by SMTP."""

from __future__ import annotations

from typing import TypeVar

from ._content import make_content

__all__ = ["make_content", "with_crlf", "without_dots"]

Text = TypeVar("Text", bytes, bytearray)


def with_crlf(mime: Text) -> Text:
    """Each line end, CR LF or LF, becomes CR LF; a CR anywhere else becomes a blank."""
    if b"\r" in mime:
        mime = mime.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    return mime.replace(b"\n", b"\r\n")


def without_dots(content: bytes) -> bytes:
    """What `make_content` made, as it can be sent by BDAT (RFC 3030): neither stuffed, nor with a line that ends it."""
    return (b"\n" + content[:-3]).replace(b"\n.", b"\n")[1:]
