"""A mail as it is sent by SMTP."""

from __future__ import annotations


def make_content(mime: bytes) -> bytes:
    """What follows the server's 354, with the line that ends it.

    Whatever the mail has in it, no server can take a part of it for its end (SMTP smuggling): each line end, CR LF or LF,
    becomes CR LF, a CR anywhere else becomes a blank, and a dot that begins a line gets a second one. A last line without
    an end is given one.
    """
    if b"\r" in mime:
        mime = mime.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if mime and not mime.endswith(b"\n"):
        mime += b"\n"
    content = mime.replace(b"\n", b"\r\n")
    if content.startswith(b"."):
        content = b"." + content
    return content.replace(b"\n.", b"\n..") + b".\r\n"
