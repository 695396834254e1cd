"""A delivery as a mail, and the messages that a mail becomes when it goes on to other queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...amqp.client import Delivery, Properties, ProtocolError
from ._raw import known_by_headers
from .body import RAW, Unreadable, check_addresses, read_body, write_body
from .retries import read_time

ATTEMPT = "x-mqcore-attempt"
OURS = "x-mqcore-"
NOT_PASSED_ON = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "CC", "BCC")
"""Headers that would lead a message elsewhere, too, or let the broker think that it goes round in circles, and drop it."""


class Message(NamedTuple):
    """What a delivery says. Plugins change `known`: who needs it as it was reads it anew."""

    id: str
    mime: bytes
    known: dict[str, Any]
    properties: Properties
    attempt: int

    @property
    def received(self) -> float | None:
        value = read_time(self.known.get("received"))
        return read_time(self.properties.timestamp) if value is None else value

    @property
    def is_raw(self) -> bool:
        return is_raw(self.properties)


def read_properties(delivery: Delivery) -> Properties:
    """Raises Unreadable."""
    try:
        return delivery.properties()
    except ProtocolError as error:
        raise Unreadable(f"its properties are none: {error}") from error


def read_message(delivery: Delivery, id: str) -> Message:
    """Raises Unreadable."""
    properties = read_properties(delivery)
    mime, known = read_mail(delivery, properties)
    attempt = properties.headers.get(ATTEMPT)
    return Message(id, mime, known, properties, attempt if type(attempt) is int and attempt > 0 else 1)


def read_mail(delivery: Delivery, properties: Properties) -> tuple[bytes, dict[str, Any]]:
    """The mail, and all else that is known about it. Raises Unreadable."""
    if delivery.body is None:
        raise Unreadable(f"it has {delivery.size} octets, more than is read")
    mime, known = read_body(delivery.body, properties.content_type, properties.content_encoding)
    if is_raw(properties):
        known = known_by_headers(properties.headers)
        check_addresses(known)
    return mime, known


def is_raw(properties: Properties) -> bool:
    return (properties.content_type or "").partition(";")[0].strip().lower() == RAW


class Outgoing(NamedTuple):
    """A message for another queue."""

    properties: Properties
    body: bytes


def with_headers(properties: Properties, headers: Mapping[str, Any], *, own_only: bool = False) -> Properties:
    """The same, for a message that is to stay in a queue until somebody takes it. `own_only`: without those of others."""
    kept = {} if own_only else {name: value for name, value in properties.headers.items() if not name.startswith(NOT_PASSED_ON)}
    return replace(properties, headers={**kept, **headers}, delivery_mode=2, expiration=None, user_id=None, cluster_id=None)


def unchanged(delivery: Delivery, properties: Properties, headers: Mapping[str, Any]) -> Outgoing:
    return Outgoing(with_headers(properties, headers), delivery.body or b"")


def changed(
    delivery: Delivery,
    message: Message,
    changes: Mapping[str, Any],
    recipients: Sequence[str] | None,
    headers: Mapping[str, Any],
) -> Outgoing:
    """The mail as it was received, with some keys changed (None: without it), for these recipients only, if not None."""
    mime, known = read_mail(delivery, message.properties)
    known.update(changes)
    if recipients is not None:
        _set_recipients(known, recipients)
    known = {name: value for name, value in known.items() if value is not None}
    if message.is_raw:
        own = {name: value for name, value in message.properties.headers.items() if name.lower().startswith("x-")}
        properties = with_headers(replace(message.properties, headers={**own, **known}), headers)
        return Outgoing(properties, delivery.body or b"")
    properties = replace(message.properties, content_encoding=None)
    return Outgoing(with_headers(properties, headers), write_body(mime, known))


def _set_recipients(known: dict[str, Any], recipients: Sequence[str]) -> None:
    if known.get("recipient") not in recipients:
        known["recipient"] = recipients[0] if len(recipients) == 1 else None
    if len(recipients) > 1 or known.get("recipients") is not None:
        known["recipients"] = list(recipients)
