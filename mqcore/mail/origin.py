"""Where a mail is from."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """A mail as its source has it. Sinks name what they store by it, so that a second run finds it again."""

    mime: bytes
    id: str
    """32 hex digits, the same in every run: from the source, the mail's place in it, and its bytes. For those of a queue's
    messages see docs/rabbitmq.md."""
    place: int = 0
    """Sorts the mails of one source: the offset in an mbox, the number in a Maildir."""
    envelope: str | None = None
    received: float | None = None
    """When it arrived, in seconds since 1970, if the source knows."""
    from_line: bytes | None = None
    """The mbox's From_ line, as it was read."""
    flags: str | None = None
    """The Maildir's flags; None means that the mail is in new/ and has none."""
    recipient: str | None = None
    file: str | None = None
    """The mail's file in the Maildir, as `cur/1700000000.M1.example:2,S`."""
    sort_time: int | None = None
    """`received` in whole seconds, but no less than that of any mail before it in the source: names sort by it."""
    comes_again: bool = True
    """Whether the source may offer it to a second run, with the same id. Not where ids are of one run, as for what clients
    send: then there is nothing to remember."""
    is_traced: bool = False
    """Whether a `Received` line of ours is on top. Then sinks that are mailboxes say to whom the mail came."""
    loops: int = 0
    """How often it was here before, by the lines below that."""
    hops: int = 0
    """How many servers of this kind it has come by."""
    utf8: bool | None = None
    """Whether the client said SMTPUTF8; None if there was none."""


def encode(address: str) -> bytes:
    """As sinks write it; what is no text in any encoding becomes question marks."""
    try:
        return address.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return address.encode(errors="replace")
