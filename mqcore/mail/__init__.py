"""Mail through the plugins: the message, and where it comes from and goes to."""

from __future__ import annotations

from ._gateway import Gateway
from ._mail import Connection, Mail
from ._transaction import Transaction
from .accessors import MailAccessors
from .base import Reader, Sink, Source, Store
from .errors import SinkError, SinkFull, SourceError
from .failed import FailedSink
from .message import Origin, Rejection
from .report import Report
from .verdicts import ACCEPTED, CANCELLED, DISCARDED, Verdict

__all__ = [
    "ACCEPTED",
    "CANCELLED",
    "DISCARDED",
    "Connection",
    "FailedSink",
    "Gateway",
    "Mail",
    "MailAccessors",
    "Origin",
    "Reader",
    "Rejection",
    "Report",
    "Sink",
    "SinkError",
    "SinkFull",
    "Source",
    "SourceError",
    "Store",
    "Transaction",
    "Verdict",
]
