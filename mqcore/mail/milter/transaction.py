"""A message that a server asks about, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...milter.protocol import Changes
from .._mail import Mail
from .._transaction import Transaction
from ..verdicts import Verdict
from .errors import Unsayable

if TYPE_CHECKING:
    from .session import Session


class Recipient(NamedTuple):
    """One that the server took, and no plugin refused."""

    address: str
    """As the plugins want it."""
    raw: bytes
    """As the server knows it."""
    announced: str
    """The same, as an address."""


class MilterTransaction(Transaction):
    """One mail for each recipient. The server gets one answer, which may take recipients away."""

    def __init__(self, session: Session, mails: Sequence[Mail], recipients: Sequence[Recipient]) -> None:
        super().__init__(mails)
        self.recipients = dict(zip(mails, recipients, strict=True))
        self.answer: bytes | None = None
        """What the server is to be told if all goes well; None if nobody is to get anything."""
        self._session: Session | None = session

    def settle(self, verdicts: list[Verdict]) -> None:
        session, self._session = self._session, None
        if session is None:
            raise RuntimeError("the gateway settles this, once")
        session.settled(self, verdicts[0])


def find_changes(mails: Sequence[Mail], of: MilterTransaction, mime: bytes, sender: str, dropped: Sequence[bytes]) -> Changes:
    """What the server is to be told so that these mails of the transaction are delivered, and no others. It has the message as
    `mime`, from `sender`, also for the recipients that are `dropped`. Raises Unsayable."""
    first = mails[0]
    for other in mails[1:]:
        if other.envelope != first.envelope:
            raise Unsayable(f"the sender is {first.envelope!r} for one recipient and {other.envelope!r} for another")
        if other.mime != first.mime:
            raise Unsayable(f"the message differs between {first.recipient!r} and {other.recipient!r}")
    removed, kept, added = dict.fromkeys(dropped), set(), []
    for mail, recipient in of.recipients.items():
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
