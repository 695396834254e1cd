"""What a mail server tells of a session, as events."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Field = tuple[bytes, bytes]
"""A field of a header: its name, and all that stands behind the colon, with LF where a line ends, but for the last."""


class Wanted(NamedTuple):
    """What there is somebody for. What is not wanted is not asked for, which spares both sides the time."""

    connect: bool = True
    secure: bool = True
    sender: bool = True
    recipient: bool = True
    content: bool = True


class Connect(NamedTuple):
    """Somebody connected to the mail server. Nobody's reply is waited for if `connect` was not wanted."""

    peer: str
    """The IP address; empty where there is none: by a Unix socket, or on this machine."""
    port: int
    name: str
    """What the server thinks the client's name is; empty if it does not know."""


class Helo(NamedTuple):
    name: str
    tls: bool
    """Whether TLS began since the last one."""


class MailFrom(NamedTuple):
    """A transaction begins."""

    address: str
    parameters: list[str]


class RcptTo(NamedTuple):
    address: str
    raw: bytes
    """As the server wants to hear it again, when the recipient is taken away."""
    parameters: list[str]


class Message(NamedTuple):
    """All of the mail has come."""

    fields: list[Field]
    body: bytes
    mime: bytes
    """Both, as it will be delivered if nothing changes it."""


class Abort(NamedTuple):
    """The transaction is over for the server, or given up. Another one may follow."""


class Goodbye(NamedTuple):
    """The session is over."""

    goes_on: bool
    """Whether another one follows on this connection."""


Event: TypeAlias = Connect | Helo | MailFrom | RcptTo | Message | Abort | Goodbye
