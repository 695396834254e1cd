"""SMTP and LMTP as a server speaks them, without I/O, for programs with sockets of their own: see docs/gateway.md.

mqcore's own server, in `mqcore.mail`, calls `ServerProtocol` from C, without the events.
"""

from __future__ import annotations

from ._protocol import ServerProtocol
from .events import Authenticate, Event, MailFrom, Message, RcptTo, Service, StartTls, XClient

__all__ = ["Authenticate", "Event", "MailFrom", "Message", "RcptTo", "ServerProtocol", "Service", "StartTls", "XClient"]
