"""The Maildir format: names."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from .._mail import Mail
from ..message import encode

OURS = re.compile(r"Q([0-9a-f]{32})\.mqcore\b")
ENVELOPE = re.compile(r",E=([^,:]*)")
LONGEST = 200  # a file system takes 255 bytes; a mail reader adds flags


def make_name(mail: Mail) -> str:
    """The name for a mail: when it arrived, its place in the source, its id, and the sender's address.

    So the same mail has the same name in every run, the names sort as the source does, and the sender is not lost: a
    Maildir has no From_ line, and a header of ours would change the mail.
    """
    origin = mail.origin
    name = f"{int(origin.received or 0)}.M{origin.place:012}Q{origin.id}.mqcore"
    if mail.envelope is not None:
        full = f"{name},E={quote(encode(mail.envelope), safe='@')}"
        if len(full) <= LONGEST:
            return full
    return name


def parse_id(name: str) -> str | None:
    """The mail's id in a name that `make_name` made."""
    match = OURS.search(name)
    return match[1] if match else None


def parse_envelope(name: str) -> str | None:
    """The sender's address in a name that `make_name` made."""
    match = ENVELOPE.search(name)
    return unquote(match[1], errors="surrogateescape") if match else None


def split_flags(name: str) -> tuple[str, str]:
    """The unique part of a name in cur/, and its flags."""
    base, _, info = name.partition(":")
    return base, info.removeprefix("2,")
