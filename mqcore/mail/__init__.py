"""Mail through the plugins: the message, and where it comes from and goes to."""

from __future__ import annotations

from ._gateway import Gateway
from ._headers import Headers
from ._mail import Connection, Mail
from ._transaction import Transaction
from .accessors import MailAccessors
from .base import BaseSink, Reader, Sink, Source, Store
from .delivered import as_delivered
from .errors import SinkError, SinkFull, SourceError
from .failed import FailedSink
from .maildir.sink import MaildirSink
from .maildir.source import MaildirSource
from .mbox.sink import MboxSink
from .mbox.source import MboxSource
from .milter.sink import MilterSink
from .milter.source import MilterSource
from .null_sink import NullSink
from .origin import Origin
from .report import Report
from .smtp.sink import LmtpSink, SmtpSink, SmtpsSink
from .smtp.source import LmtpSource, SmtpSource, SmtpsSource
from .verdicts import ACCEPTED, CANCELLED, DISCARDED, Kind, Rejection, Verdict

__all__ = [
    "ACCEPTED",
    "CANCELLED",
    "DISCARDED",
    "BaseSink",
    "Connection",
    "FailedSink",
    "Gateway",
    "Headers",
    "Kind",
    "LmtpSink",
    "LmtpSource",
    "Mail",
    "MailAccessors",
    "MaildirSink",
    "MaildirSource",
    "MboxSink",
    "MboxSource",
    "MilterSink",
    "MilterSource",
    "NullSink",
    "Origin",
    "Reader",
    "Rejection",
    "Report",
    "Sink",
    "SinkError",
    "SinkFull",
    "SmtpSink",
    "SmtpSource",
    "SmtpsSink",
    "SmtpsSource",
    "Source",
    "SourceError",
    "Store",
    "Transaction",
    "Verdict",
    "as_delivered",
]
