"""Mails for tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..mail import Connection, Mail

SENDER = "sender@example.org"
RECIPIENT = "recipient@example.net"

Fields = Mapping[str, str] | Iterable[tuple[str, str]]


def make_mail(
    source: str | os.PathLike[str] | bytes | None = None,
    *,
    headers: Fields | None = None,
    body: str | bytes = b"",
    envelope: str | None = SENDER,
    to: str | Iterable[str] = RECIPIENT,
    json: Mapping[str, Any] | None = None,
    connection: Connection | None = None,
    peer: str = "192.0.2.1",
    helo: str | None = "client.example.org",
) -> Mail:
    """A mail as a server would give it to plugins.

    `source`: the path of a file, or the mail's bytes; or, without it, a mail is made of `headers`, a mapping or pairs, and
    `body`. `envelope`: the sender; empty for a bounce, None if it is not known. `to`: the recipient's address, or several;
    the first is the `recipient`, as a server gives plugins one mail for each. `json`: what else is known. `connection`: that
    it came in by; without one, there is one from `peer`, which called itself `helo`.

    Raises OSError where the file cannot be read, TypeError for both a source and headers or body, and for what can be neither.
    """
    if isinstance(source, str) and "\n" in source:
        raise TypeError("a str is the path of a mail, and this has several lines; give a mail as bytes, b'...' or .encode()")
    if isinstance(headers, str | bytes):
        raise TypeError(f"headers= is a mapping, or pairs, as {{'Subject': 'hello'}}, not {headers!r}")
    if not isinstance(to, Iterable):
        raise TypeError(f"to= is an address or several, not {to!r}")
    if source is not None and (headers is not None or body):
        raise TypeError("a mail is made of a file or bytes, or of headers= and body=, not of both")
    recipients = [to] if isinstance(to, str) else list(to)
    mail = Mail(
        _content(source, headers, body),
        envelope=envelope,
        json=json,
        connection=connection or Connection(1, peer, helo),
    )
    if recipients:
        mail.recipient = recipients[0]
    if len(recipients) > 1:
        mail.recipients = recipients
    return mail


def _content(source: str | os.PathLike[str] | bytes | None, headers: Fields | None, body: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if source is not None:
        return Path(source).read_bytes()
    if headers is None:
        headers = {"From": SENDER, "To": RECIPIENT, "Subject": "test"}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    fields = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    return fields.encode(errors="surrogateescape") + b"\r\n" + (body.encode() if isinstance(body, str) else body)


def bytes_of(mail: Mail | bytes) -> bytes:
    """What a client sends. Raises TypeError for what is neither."""
    if isinstance(mail, Mail):
        return mail.mime
    if not isinstance(mail, bytes):
        raise TypeError(f"a message is bytes, or a mail as mq_mail() makes it, not {mail!r}")
    return mail
