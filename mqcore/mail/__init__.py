"""Mail through the plugins: the message, and where it comes from and goes to."""

from __future__ import annotations

from ._mail import Connection, Mail
from .accessors import MailAccessors
from .errors import SinkError, SinkFull, SourceError
from .message import Origin, Rejection

__all__ = ["Connection", "Mail", "MailAccessors", "Origin", "Rejection", "SinkError", "SinkFull", "SourceError"]
