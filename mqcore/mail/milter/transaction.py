"""What is to be said of a message that a server asks about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...milter.answers import Changes
from .._mail import Mail
from .errors import Unsayable


class Recipient(NamedTuple):
    """One that the server took, and no plugin refused."""

    address: str
    """As the plugins want it."""
    raw: bytes
    """As the server knows it."""
    announced: str
    """The same, as an address."""


def find_changes(
    mails: Sequence[Mail], recipients: Mapping[Mail, Recipient], mime: bytes, sender: str, dropped: Sequence[bytes]
) -> Changes:
    """What the server is to be told so that these mails, which are those of `recipients` or some of them, are delivered, and no
    others. It has the message as `mime`, from `sender`, also for the recipients that are `dropped`. Raises Unsayable."""
    first = mails[0]
    for other in mails[1:]:
        if other.envelope != first.envelope:
            raise Unsayable(f"the sender is {first.envelope!r} for one recipient and {other.envelope!r} for another")
        if other.mime != first.mime:
            raise Unsayable(f"the message differs between {first.recipient!r} and {other.recipient!r}")
    removed, kept, added = dict.fromkeys(dropped), set(), []
    for mail, recipient in recipients.items():
        wanted = mail.recipients if mail in mails else []
        if wanted == [recipient.announced]:
            kept.add(recipient.raw)
        else:
            removed[recipient.raw] = None
            added += wanted
    quarantine = next((why for mail in mails if isinstance(why := mail.json.get("quarantine"), str)), None)
    return Changes(
        sender=None if first.envelope == sender else first.envelope or "",
        removed=[raw for raw in removed if raw not in kept],  # clients may say one twice
        added=list(dict.fromkeys(added)),
        mime=None if first.mime == mime else first.mime,
        quarantine=quarantine,
    )
