"""The methods that a client sends and gets: their numbers, and what stands in them.

Those that each message needs are read and written in C, beside this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ._arguments import pack, unpack
from .errors import COMMAND_INVALID, ProtocolError


class Method(NamedTuple):
    name: str
    ids: tuple[int, int]
    """Of the class and the method."""
    kinds: tuple[str, ...]
    """What its arguments are, in order. Bits that follow each other share an octet."""


def _methods() -> Iterator[Method]:
    for line in SPECIFICATION.strip().splitlines():
        ids, name, *kinds = line.split()
        class_id, method_id = map(int, ids.split("."))
        yield Method(name, (class_id, method_id), tuple(kinds))


SPECIFICATION = """
10.10 connection.start octet octet table longstr longstr
10.11 connection.start-ok table shortstr longstr shortstr
10.20 connection.secure longstr
10.21 connection.secure-ok longstr
10.30 connection.tune short long short
10.31 connection.tune-ok short long short
10.40 connection.open shortstr shortstr bit
10.41 connection.open-ok shortstr
10.50 connection.close short shortstr short short
10.51 connection.close-ok
10.60 connection.blocked shortstr
10.61 connection.unblocked
10.70 connection.update-secret longstr shortstr
10.71 connection.update-secret-ok
20.10 channel.open shortstr
20.11 channel.open-ok longstr
20.20 channel.flow bit
20.21 channel.flow-ok bit
20.40 channel.close short shortstr short short
20.41 channel.close-ok
40.10 exchange.declare short shortstr shortstr bit bit bit bit bit table
40.11 exchange.declare-ok
50.10 queue.declare short shortstr bit bit bit bit bit table
50.11 queue.declare-ok shortstr long long
50.30 queue.purge short shortstr bit
50.31 queue.purge-ok long
50.40 queue.delete short shortstr bit bit bit
50.41 queue.delete-ok long
60.10 basic.qos long short bit
60.11 basic.qos-ok
60.20 basic.consume short shortstr shortstr bit bit bit bit table
60.21 basic.consume-ok shortstr
60.30 basic.cancel shortstr bit
60.31 basic.cancel-ok shortstr
60.40 basic.publish short shortstr shortstr bit bit
60.50 basic.return short shortstr shortstr shortstr
60.60 basic.deliver shortstr longlong bit shortstr shortstr
60.70 basic.get short shortstr bit
60.71 basic.get-ok longlong bit shortstr shortstr long
60.72 basic.get-empty shortstr
60.80 basic.ack longlong bit
60.90 basic.reject longlong bit
60.120 basic.nack longlong bit bit
85.10 confirm.select bit
85.11 confirm.select-ok
"""

BY_NAME = {method.name: method for method in _methods()}
BY_IDS = {method.ids: method for method in BY_NAME.values()}


def name_of(class_id: int, method_id: int) -> str:
    """Empty for 0.0, which an error names that no method caused."""
    method = BY_IDS.get((class_id, method_id))
    return method.name if method else f"{class_id}.{method_id}" if class_id else ""


def encode(name: str, *arguments: Any) -> bytes:
    """The payload of a frame. Raises ValueError, TypeError for what AMQP has no room or no type for."""
    method = BY_NAME[name]
    return pack(method.ids, method.kinds, arguments)


def decode(payload: bytes) -> tuple[str, Sequence[Any]]:
    """Raises ProtocolError."""
    class_id, method_id = int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")
    method = BY_IDS.get((class_id, method_id))
    if method is None:
        raise ProtocolError(COMMAND_INVALID, f"there is no method {class_id}.{method_id} for a client")
    return method.name, unpack(payload, method.kinds)
