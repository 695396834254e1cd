"""The places that mail is read from and written to, by their URLs. A new kind of place is a class and a line here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from ..hooks import close_to
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
_PORTS = {"smtp": 25, "smtps": 465}
"""Where it usually is."""

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
        """Whether both are the same mailbox, socket or queue."""
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
    try:
        return _read(url, known, what)
    except ValueError as error:
        if (meant := next((guess for guess in _guesses(url, known) if _is_one(guess, known, what)), None)) is None:
            raise
        raise ValueError(f"{str(error).partition('; it can be ')[0]}; did you mean {without_login(meant)}?") from None


def _is_one(url: str, known: Mapping[str, type[P]], what: str) -> bool:
    try:
        _read(url, known, what)
    except ValueError:
        return False
    return True


def _guesses(url: str, known: Mapping[str, type[P]]) -> Iterator[str]:
    """What may have been meant by a URL that is none, as likely as that is."""
    schemes = {usage.partition(":")[0] for usage in known}
    word, rest = re.fullmatch(r"(\w*):?(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr]  # this matches anything
    if os.path.exists(url):
        yield f"{'maildir' if os.path.isdir(url) else 'mbox'}:{url}"
    if close := close_to(word.lower(), schemes, 0.75):
        yield f"{close}:{rest}"
    if close and f"{close}://HOST:PORT" in known:
        yield f"{close}://{rest.lstrip('/')}"
        yield f"{close}://{rest.lstrip('/')}:{_PORTS.get(close, '')}"
        if inet := re.fullmatch(r"inet6?:(\d+)@(.+)", rest):  # as Postfix and Sendmail write it
            yield f"{close}://{inet[2]}:{inet[1]}"
    yield f"smtp://{url}"


def _read(url: str, known: Mapping[str, type[P]], what: str) -> Location[P]:
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
        if usual_path == "PATH" and re.match("//[^/]", path):  # which would be a folder of the root, without a word
            raise ValueError(
                f"{url!r} has two slashes before its path; write it with none, as {scheme}:{path[2:]}, or, from the root on, "
                f"with one, as {scheme}:{path[1:]}"
            )
        if usual_path in ("PATH", ""):
            return Location(scheme, path and _absolute(path), kind)
    raise ValueError(f"{without_login(url)!r} is no {what}; it can be {' or '.join(known)}")
