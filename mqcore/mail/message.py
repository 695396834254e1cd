"""`Mail`: the message that passes through the hooks when what passes is mail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from .. import Message


class Origin(NamedTuple):
    """A mail as its source has it. Sinks name what they store by it, so that a second run finds it again."""

    mime: bytes
    id: str
    """32 hex digits, the same in every run: from the source, the mail's place in it, and its bytes."""
    place: int = 0
    """Sorts the mails of one source: the offset in an mbox, the number in a Maildir."""
    envelope: str | None = None
    received: float | None = None
    """When it arrived, in seconds since 1970, if the source knows."""
    postmark: bytes | None = None
    """The mbox's `From ` line, as it was read."""
    flags: str | None = None
    """The Maildir's flags; None means that the mail is in new/."""
    recipient: str | None = None


class Rejection(NamedTuple):
    """What a plugin refused a mail with."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


@dataclass(slots=True, eq=False)
class Connection:
    """The connection that a mail came in by. A plugin that implements `mq_smtp_in_authenticate` sets `authenticated`."""

    id: int
    """No other connection of the run has it."""
    peer: str
    """The client's IP address."""
    helo: str | None = None
    """What the client calls itself."""
    tls: bool = False
    authenticated: bool = False
    data: dict[Any, Any] = field(default_factory=dict)
    """What plugins know about the connection; each keeps to keys of its own."""
    transport: asyncio.Transport | None = field(default=None, repr=False, compare=False)
    """Its end here; None when it is gone. For native plugins, whose functions reach it."""


class Mail(Message):
    """One mail on its way through the plugins.

    `mime` is the whole mail, as bytes; a plugin changes the mail by setting it. All else that is known about the mail
    is in `json`, a dict with MailerQ's keys, in which a plugin may keep keys of its own. `envelope`, `recipient` and
    `recipients` are short for the keys of the same names.

    `origin` is the mail as the source has it, whatever plugins changed since. `connection` is None for a mail that came
    from a file.
    """

    __slots__ = ("_json", "_mime", "connection", "origin", "rejection", "results")

    origin: Origin
    connection: Connection | None
    rejection: Rejection | None
    results: list[dict[str, Any]]
    """What the next server said to each recipient, when the mail goes out by SMTP."""

    def __init__(
        self,
        mime: bytes,
        *,
        envelope: str | None = None,
        recipients: Iterable[str] = (),
        json: Mapping[str, Any] | None = None,
        connection: Connection | None = None,
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        self.mime = mime
        self._json = dict(json) if json else {}
        if envelope is not None:
            self.envelope = envelope
        if recipients:
            self.recipients = list(recipients)
        self.connection = connection
        self.rejection = None
        self.results = []
        if origin is None:
            origin = Origin(mime, blake2b(mime, digest_size=16).hexdigest(), envelope=envelope)
        self.origin = origin

    @classmethod
    def read(cls, origin: Origin) -> Mail:
        """The mail as its source has it."""
        mail = cls(origin.mime, envelope=origin.envelope, origin=origin)
        if origin.recipient is not None:
            mail.recipient = origin.recipient
        return mail

    @property
    def mime(self) -> bytes:
        """The whole mail."""
        return self._mime

    @mime.setter
    def mime(self, mime: bytes) -> None:
        if not isinstance(mime, bytes):  # said to the plugin that sets it, not to the sink that cannot store it
            raise TypeError(f"mime is the mail as bytes, not as {type(mime).__name__}")
        self._mime = mime

    @property
    def json(self) -> dict[str, Any]:
        """All else that is known."""
        return self._json

    @json.setter
    def json(self, json: dict[str, Any]) -> None:
        if not isinstance(json, dict):
            raise TypeError(f"json is a dict, not {type(json).__name__}")
        self._json = json

    @property
    def envelope(self) -> str | None:
        """The sender's address; empty for a bounce, None if it is not known."""
        return _address(self._json.get("envelope"))

    @envelope.setter
    def envelope(self, address: str | None) -> None:
        self.json["envelope"] = None if address is None else _one_line("envelope", address)

    @property
    def recipient(self) -> str | None:
        """The address that this mail is for, None if it is not known."""
        return _address(self._json.get("recipient"))

    @recipient.setter
    def recipient(self, address: str | None) -> None:
        self.json["recipient"] = None if address is None else _one_line("recipient", address)

    @property
    def recipients(self) -> list[str]:
        """All addresses that the mail was sent to: `recipient` alone, unless more are known."""
        recipients: list[str] | None = self.json.get("recipients")
        if recipients is None:
            return [] if self.recipient is None else [self.recipient]
        return recipients

    @recipients.setter
    def recipients(self, addresses: Iterable[str]) -> None:
        self.json["recipients"] = [_one_line("recipient", address) for address in addresses]

    def reject(self, code: int, text: str) -> None:
        """Refuse the mail with an SMTP reply, as `mail.reject(550, "no such user")`.

        It does not go to the sink, however the step ends. At a stage of SMTP where there is no mail yet, what is refused
        is the client's command. The plugins after this one still see the mail, unless the hook returns COMPLETE. A second
        call replaces the first.
        """
        if not 400 <= code <= 599:
            raise ValueError(f"a mail is rejected with a code from 400 to 599, not {code}")
        self.rejection = Rejection(code, _one_line("text of a rejection", text))

    def __repr__(self) -> str:
        return f"<Mail {self.origin.id} from {self.envelope!r}, {len(self.mime)} bytes>"


def _address(value: object) -> str | None:
    """What plugins put into `json` may be anything, and whatever is no address must not reach a sink."""
    return value if isinstance(value, str) and "\r" not in value and "\n" not in value else None


def encode(address: str) -> bytes:
    """As sinks write it; what is no text in any encoding becomes question marks."""
    try:
        return address.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return address.encode(errors="replace")


def _one_line(what: str, text: str) -> str:
    if "\r" in text or "\n" in text:
        raise ValueError(f"the {what} must be one line, without CR or LF: {text!r}")
    return text
