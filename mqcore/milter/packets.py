"""Packets: a length, a command of one letter, and data."""

from __future__ import annotations

import struct

LARGEST = 1 << 20
"""Octets of one packet, with its command. Postfix sends 65,536 at most, Sendmail as much as it was built for."""

_LENGTH = struct.Struct("!I")


class MilterError(ValueError):
    """What the other side sent is not the milter protocol. The connection is to be closed."""


def packet(command: bytes, data: bytes = b"") -> bytes:
    return _LENGTH.pack(1 + len(data)) + command + data


def parameters(*values: bytes) -> bytes:
    """Texts as they stand in a packet: each with a NUL behind it. Their own NULs, which no side could read, become blanks."""
    return b"".join(value.replace(b"\0", b" ") + b"\0" for value in values)
