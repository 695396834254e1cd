"""The places that mail is read from and written to, by their URLs. A new kind of place is a class and a line here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from .base import Sink, Source
from .maildir.sink import MaildirSink
from .maildir.source import MaildirSource
from .mbox.sink import MboxSink
from .mbox.source import MboxSource
from .null_sink import NullSink
from .smtp.sink import LmtpSink, SmtpSink, SmtpsSink
from .smtp.source import SmtpSource, SmtpsSource, split_host

T = TypeVar("T")

SOURCES: Mapping[str, Callable[..., Source | SmtpSource]] = {
    "mbox:PATH": MboxSource,
    "maildir:PATH": MaildirSource,
    "smtp://HOST:PORT": SmtpSource,
    "smtps://HOST:PORT": SmtpsSource,
}
STORES: dict[str, Callable[..., Sink]] = {"mbox:PATH": MboxSink, "maildir:PATH": MaildirSink, "null:": NullSink}
SINKS: Mapping[str, Callable[..., Sink]] = STORES | {
    "smtp://HOST:PORT": SmtpSink,
    "smtp:unix:PATH": SmtpSink,
    "smtps://HOST:PORT": SmtpsSink,
    "lmtp://HOST:PORT": LmtpSink,
    "lmtp:unix:PATH": LmtpSink,
}


class Place(NamedTuple, Generic[T]):
    """A place that is not opened yet."""

    scheme: str
    path: str
    make: Callable[..., T]

    def __str__(self) -> str:
        return f"{self.scheme}:{self.path}"

    def open(self, **options: object) -> T:
        return self.make(self.path, **options)

    def is_same(self, other: Place[Source | SmtpSource] | Place[Sink]) -> bool:
        """Whether both are the same mailbox."""
        return bool(self.path) and os.path.realpath(self.path) == os.path.realpath(other.path)


def parse_source(url: str) -> Place[Source | SmtpSource]:
    """Raises ValueError for a URL that is no source."""
    return _parse(url, SOURCES, "source")


def parse_sink(url: str) -> Place[Sink]:
    """Raises ValueError for a URL that is no sink."""
    return _parse(url, SINKS, "sink")


def parse_store(url: str) -> Place[Sink]:
    """The same, but for sinks that are no servers."""
    return _parse(url, STORES, "place for failed mails")


def _parse(url: str, known: Mapping[str, Callable[..., T]], what: str) -> Place[T]:
    scheme, _, path = url.partition(":")
    for usage, make in known.items():
        usual_scheme, _, usual_path = usage.partition(":")
        if scheme != usual_scheme or bool(path) != bool(usual_path):
            continue
        is_socket = len(path) > len("unix:") and path.startswith("unix:")
        if usual_path == "//HOST:PORT" and not is_socket:
            split_host(path)
            return Place(scheme, path, make)
        if usual_path == "unix:PATH" and is_socket:
            return Place(scheme, f"unix:{os.path.expanduser(path.removeprefix('unix:'))}", make)
        if not usual_path.endswith(("//HOST:PORT", "unix:PATH")):
            return Place(scheme, os.path.expanduser(path), make)
    raise ValueError(f"{url!r} is no {what}; it can be {' or '.join(known)}")
