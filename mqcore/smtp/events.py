"""What the protocol is about: the service that is offered, and the events that come of what a client says.

The events are for programs with sockets of their own, which import them from `mqcore.smtp.server`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .limits import MAX_MESSAGE, MAX_RECIPIENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server offers, and where it draws the line; one for all its protocols. Sizes are in octets."""

    name: str
    """Its host name, for the greeting."""
    lmtp: bool = False
    """Speak LMTP (RFC 2033) in place of SMTP."""
    starttls: bool = False
    auth: bool = False
    auth_without_tls: bool = False
    """Let passwords be sent in the clear."""
    require_tls: bool = False
    """Take no mail and no password from a client that has not begun TLS (530)."""
    require_login: bool = False
    """Take no mail from a client that has not logged in (530)."""
    lenient: bool = False
    """Take what a server in front may have taken though it is not as the RFCs have it: see `lenient.py` for addresses and
    parameters; in messages CRs and LFs that stand alone."""
    dsn: bool = False
    """Offer DSN (RFC 3461)."""
    max_message: int = MAX_MESSAGE
    max_recipients: int = MAX_RECIPIENTS
    max_line: int = 4096
    """For a command. RFC 5321 asks for 512; long addresses, their parameters and AUTH need more."""
    max_errors: int = 20
    """Wrong commands and refused logins in one connection."""
    max_idle_commands: int = 100
    """Commands that move no mail, such as NOOP, from one mail to the next; more of them count as errors."""
    trace: bytes = b""
    """What `Received` lines of this server have in them, and those of no other; empty if it writes none."""
    max_loops: int = 10
    """A message may have so many lines of these."""


class MailFrom(NamedTuple):
    """MAIL: a transaction begins. The address is empty for a bounce."""

    address: str


class RcptTo(NamedTuple):
    address: str


class Message(NamedTuple):
    """All of the mail, its lines as they were before they were made ready for SMTP."""

    mime: bytes


class Authenticate(NamedTuple):
    login: str
    password: str


class XClient(NamedTuple):
    """The client speaks for another one, of which these things are known (`xclient.XCLIENT`, in small letters; None for what it
    does not know). All begins anew, with the greeting; answer as at the beginning."""

    attributes: dict[str, str | None]


class StartTls(NamedTuple):
    """Read no more, send the output, and begin TLS; then call `secured`, and answer."""


Event: TypeAlias = MailFrom | RcptTo | Message | Authenticate | StartTls | XClient
