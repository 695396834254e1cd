"""A mail as it is sent by SMTP."""

from __future__ import annotations

from typing import TypeVar

Text = TypeVar("Text", bytes, bytearray)


def with_crlf(mime: Text) -> Text:
    """Each line end, CR LF or LF, becomes CR LF; a CR anywhere else becomes a blank."""
    if b"\r" in mime:
        mime = mime.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    return mime.replace(b"\n", b"\r\n")


def make_content(mime: bytes) -> bytes:
    """What follows the server's 354, with the line that ends it.

    Whatever the mail has in it, no server can take a part of it for its end (SMTP smuggling): each line end, CR LF or LF,
    becomes CR LF, a CR anywhere else becomes a blank, and a dot that begins a line gets a second one. A last line without
    an end is given one.
    """
    content = with_crlf(mime)
    if content and not content.endswith(b"\n"):
        content += b"\r\n"
    if content.startswith(b"."):
        content = b"." + content
    return content.replace(b"\n.", b"\n..") + b".\r\n"


def without_dots(content: bytes) -> bytes:
    """What `make_content` made, as it can be sent by BDAT (RFC 3030): neither stuffed, nor with a line that ends it."""
    return (b"\n" + content[:-3]).replace(b"\n.", b"\n")[1:]
