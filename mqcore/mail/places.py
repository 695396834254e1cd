"""The places that mail is read from and written to, by their URLs. A new kind of place is a class and a line here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from .amqp.sink import AmqpSink, AmqpsSink
from .amqp.source import AmqpSource, AmqpsSource
from .amqp.url import USAGE as AMQP
from .amqp.url import parse as parse_amqp
from .base import BaseSink, Option, Place, Source, Store
from .listening import SYSTEMD, split_host
from .maildir.sink import MaildirSink
from .maildir.source import MaildirSource
from .mbox.sink import MboxSink
from .mbox.source import MboxSource
from .milter.source import MilterSource
from .null_sink import NullSink
from .smtp.sink import LmtpSink, SmtpSink, SmtpsSink
from .smtp.source import LmtpSource, SmtpSource, SmtpsSource

P = TypeVar("P", bound=Place)

SOURCES: Mapping[str, type[Source]] = {
    "mbox:PATH": MboxSource,
    "maildir:PATH": MaildirSource,
    "smtp://HOST:PORT": SmtpSource,
    "smtp:unix:PATH": SmtpSource,
    "smtps://HOST:PORT": SmtpsSource,
    "lmtp://HOST:PORT": LmtpSource,
    "lmtp:unix:PATH": LmtpSource,
    "smtp:systemd": SmtpSource,
    "smtps:systemd": SmtpsSource,
    "lmtp:systemd": LmtpSource,
    "milter://HOST:PORT": MilterSource,
    "milter:unix:PATH": MilterSource,
    f"amqp:{AMQP}": AmqpSource,
    f"amqps:{AMQP}": AmqpsSource,
}
STORES: Mapping[str, type[Store]] = {"mbox:PATH": MboxSink, "maildir:PATH": MaildirSink, "null:": NullSink}
SINKS: Mapping[str, type[BaseSink]] = {
    **STORES,
    "smtp://HOST:PORT": SmtpSink,
    "smtp:unix:PATH": SmtpSink,
    "smtps://HOST:PORT": SmtpsSink,
    "lmtp://HOST:PORT": LmtpSink,
    "lmtp:unix:PATH": LmtpSink,
    f"amqp:{AMQP}": AmqpSink,
    f"amqps:{AMQP}": AmqpsSink,
}


class Location(NamedTuple, Generic[P]):
    """A place that is not opened yet."""

    scheme: str
    path: str
    kind: type[P]

    def __str__(self) -> str:
        return without_login(f"{self.scheme}:{self.path}")

    def is_same(self, other: Location[Any]) -> bool:
        """Whether both are the same mailbox, or socket."""
        one, two = (os.path.realpath(where.path.removeprefix("unix:")) for where in (self, other))
        return bool(self.path) and one == two


def without_login(url: str) -> str:
    """For people and logs: what may be a password is left out."""
    before, at, rest = url.rpartition("@")
    return f"{before.partition('//')[0]}//...@{rest}" if at and "//" in before else url


def parse_source(url: str) -> Location[Source]:
    """Raises ValueError for a URL that is no source."""
    return _parse(url, SOURCES, "source")


def parse_sink(url: str) -> Location[BaseSink]:
    """Raises ValueError for a URL that is no sink."""
    return _parse(url, SINKS, "sink")


def parse_store(url: str) -> Location[Store]:
    """The same, but for sinks that are no servers."""
    return _parse(url, STORES, "place for failed mails")


def options() -> dict[Option, list[str]]:
    """What some kinds of places take beside a URL, and which."""
    known: dict[Option, list[str]] = {}
    for side, places in (("--from", SOURCES), ("--to", SINKS)):
        for usage, kind in places.items():
            for option in kind.options:
                where = f"{side} {usage.partition(':')[0]}:"
                if where not in known.setdefault(option, []):
                    known[option].append(where)
    return known


def _absolute(path: str) -> str:
    """Whatever a plugin makes the current directory later."""
    return os.path.abspath(os.path.expanduser(path))


def _parse(url: str, known: Mapping[str, type[P]], what: str) -> Location[P]:
    scheme, _, path = url.partition(":")
    if path == SYSTEMD and url in known:
        return Location(scheme, path, known[url])
    for usage, kind in known.items():
        usual_scheme, _, usual_path = usage.partition(":")
        if scheme != usual_scheme or bool(path) != bool(usual_path):
            continue
        is_socket = len(path) > len("unix:") and path.startswith("unix:")
        if usual_path == "//HOST:PORT" and not is_socket:
            split_host(path)
            return Location(scheme, path, kind)
        if usual_path == AMQP:
            parse_amqp(scheme, path, "--from" if what == "source" else "--to")
            return Location(scheme, path, kind)
        if usual_path == "unix:PATH" and is_socket:
            return Location(scheme, f"unix:{_absolute(path.removeprefix('unix:'))}", kind)
        if usual_path in ("PATH", ""):
            return Location(scheme, path and _absolute(path), kind)
    raise ValueError(f"{without_login(url)!r} is no {what}; it can be {' or '.join(known)}")
