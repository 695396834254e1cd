"""What the tests of AMQP share: a broker's side of the talk, as frames."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

from mqcore.amqp.client import ClientOptions, ClientProtocol, Event, Properties, encode_properties
from mqcore.amqp.methods import decode, encode

NONE = encode_properties(Properties())
"""No properties."""
GREETING = b"AMQP\0\0\x09\x01"


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(channel: int, name: str, *arguments: Any) -> bytes:
    return frame(1, channel, encode(name, *arguments))


def content(channel: int, body: bytes, properties: bytes = NONE, piece: int = 100_000) -> bytes:
    """A header and the frames of a body."""
    header = frame(2, channel, struct.pack(">HHQ", 60, 0, len(body)) + properties)
    return header + b"".join(frame(3, channel, body[at : at + piece]) for at in range(0, len(body), piece))


def deliver(
    channel: int, tag: int, body: bytes, properties: bytes = NONE, *, redelivered: bool = False, piece: int = 100_000
) -> bytes:
    return method(channel, "basic.deliver", "c", tag, redelivered, "", "q") + content(channel, body, properties, piece)


def returned(channel: int, properties: bytes, body: bytes = b"x") -> bytes:
    return method(channel, "basic.return", 312, "NO_ROUTE", "", "nowhere") + content(channel, body, properties)


def frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each with its type, channel and payload; all of `data`."""
    at = 0
    while at < len(data):
        kind, channel, size = struct.unpack_from(">BHI", data, at)
        assert data[at + 7 + size] == 0xCE
        yield kind, channel, data[at + 7 : at + 7 + size]
        at += size + 8


def said(protocol: ClientProtocol) -> list[tuple[int, str, list[Any]]]:
    """The methods of its output: channel, name and arguments."""
    methods: list[tuple[int, str, list[Any]]] = []
    for kind, channel, payload in frames(protocol.take_output().removeprefix(GREETING)):
        if kind == 1:
            name, arguments = decode(payload)
            methods.append((channel, name, list(arguments)))
    return methods


def published(data: bytes) -> list[tuple[bytes, bytes]]:
    """Properties and body of each message in an output."""
    found: list[tuple[bytes, bytes]] = []
    for kind, _, payload in frames(data):
        if kind == 2:
            found.append((payload[12:], b""))
        elif kind == 3:
            found[-1] = found[-1][0], found[-1][1] + payload
    return found


START = method(0, "connection.start", 0, 9, {"product": "RabbitMQ", "version": "3.10.8"}, b"PLAIN AMQPLAIN", b"en_US")
TUNE = method(0, "connection.tune", 2047, 131072, 60)
OPEN_OK = method(0, "connection.open-ok", "")


def connected(**options: Any) -> ClientProtocol:
    """A connection that is open."""
    protocol = ClientProtocol(ClientOptions(**{"user": "guest", "password": "guest", **options}))
    protocol.receive(START + TUNE + OPEN_OK)
    assert protocol.is_open
    protocol.take_output()
    return protocol


def with_channel(*, confirms: bool = False, **options: Any) -> ClientProtocol:
    """Channel 1 is open, too, and in confirm mode."""
    protocol = connected(**options)
    assert protocol.open_channel() == 1
    protocol.receive(method(1, "channel.open-ok", b""))
    if confirms:
        protocol.select_confirm(1)
        protocol.receive(method(1, "confirm.select-ok"))
    protocol.take_output()
    return protocol


def seen(events: list[Event]) -> list[Any]:
    """Events as what can be compared."""
    known: list[Any] = []
    for event in events:
        if type(event).__name__ == "Delivery":
            known.append(("delivery", event.channel, event.tag, event.redelivered, event.header, event.body, event.size))
        elif type(event).__name__ == "Outcome":
            known.append(("outcome", event.channel, event.tag, event.kind, event.code, event.text))
        else:
            known.append(event)
    return known


def cut(data: bytes, places: list[int]) -> list[bytes]:
    where = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(where)]
