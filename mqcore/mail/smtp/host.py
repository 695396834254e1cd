"""What a connection asks of its server."""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple, Protocol

from ... import Dispatcher, Hook
from ...smtp.events import Service
from .._gateway import Gateway
from ..message import Rejection
from ._connection import Names, SmtpConnection
from ._counters import SmtpCounters
from ._trace import Tracer
from .logins import FailedLogins


class Hooks(NamedTuple):
    """The hooks of the stages of a connection."""

    connect: Hook
    secure: Hook
    authenticate: Hook
    mailfrom: Hook
    rcptto: Hook
    data: Hook
    close: Hook

    @classmethod
    def of(cls, dispatcher: Dispatcher) -> Hooks:
        return cls(*(dispatcher.hook(f"mq_smtp_in_{stage}") for stage in cls._fields))


class Host(Protocol):
    loop: asyncio.AbstractEventLoop
    hooks: Hooks
    gateway: Gateway
    names: Names
    counters: SmtpCounters
    failed_logins: FailedLogins
    tracer: Tracer | None
    tls: ssl.SSLContext | None
    implicit_tls: bool
    timeout: float
    """Seconds that a client has for a command (RFC 5321, 4.5.3.2.7), or for a message, and then some by its size."""

    @property
    def service(self) -> Service:
        """What a connection that begins now is offered."""
        ...

    def enter(self, connection: SmtpConnection, peer: str) -> int | Rejection:
        """The number of a new connection, or what its client is told if there are too many."""
        ...

    def reenter(self, connection: SmtpConnection, peer: str) -> int | Rejection:
        """The same for one that is there, and speaks for this client now."""
        ...

    trusts_some: bool
    """Whether there is any client that may say either of these."""

    def trusts(self, peer: str) -> tuple[bool, bool]:
        """Whether a client may say XCLIENT, and XFORWARD."""
        ...

    def leave(self, connection: SmtpConnection) -> None: ...

    def reserve(self, size: int) -> bool:
        """Count so many octets more (or less) of messages in memory; whether there is room for them."""
        ...
