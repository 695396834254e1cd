"""The Maildir format: names."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from .._mail import Mail
from ..origin import encode

OURS = re.compile(r"Q([0-9a-f]{32})\.mqcore\b")
ENVELOPE = re.compile(r",E=([^,:]*)")
TIME = re.compile(r"(\d{1,18})\.")
LONGEST = 200  # a file system takes 255 bytes; a mail reader adds flags
LONGEST_OF_ALL = 255
NO_TIME = 10**18


def make_file(mail: Mail) -> tuple[str, str]:
    """The folder and the name for a mail. Where it was in a Maildir, they say the same of it: new or seen, and flags."""
    name, origin = make_name(mail), mail.origin
    if origin.file is None:
        return ("new", name) if origin.flags is None else ("cur", f"{name}:2,{origin.flags}")
    folder, _, file = origin.file.partition("/")
    info = "".join(file.partition(":")[1:])
    return folder, name + info if len(os.fsencode(name + info)) <= LONGEST_OF_ALL else name


def make_name(mail: Mail) -> str:
    """The unique part: the time, the mail's place in the source, its id, and the sender's address.

    So the same mail has the same name in every run, the names sort as the source does, and the sender is not lost: a
    Maildir has no From_ line, and a header of ours would change the mail.
    """
    origin = mail.origin
    time = origin.sort_time if origin.sort_time is not None else int(origin.received or 0)
    name = f"{max(time, 0):010}.M{origin.place:012}Q{origin.id}.mqcore"
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
    """The sender's address in a name that `make_name` made; what is no single line is none."""
    match = ENVELOPE.search(name)
    sender = unquote(match[1], errors="surrogateescape") if match else None
    return None if sender is None or "\r" in sender or "\n" in sender else sender


def split_file(file: str) -> tuple[str, str, str]:
    """The folder, the unique part of the name, and the info part of folder/name."""
    folder, _, name = file.partition("/")
    unique, _, info = name.partition(":")
    return folder, unique, info


def find_flags(file: str) -> str | None:
    """The flags in folder/name; None if it is in new/ and has none."""
    folder, _, info = split_file(file)
    if folder == "new" and not info:
        return None
    return info.removeprefix("2,") if info.startswith("2,") else ""


def sort_key(file: str) -> tuple[int, str, str]:
    """Sorts folder/name by time, whatever its number of digits, and all that have one unique part side by side."""
    _, unique, _ = split_file(file)
    time = TIME.match(unique)
    return int(time[1]) if time else NO_TIME, unique, file
