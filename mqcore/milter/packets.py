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


def split(data: bytes) -> list[bytes]:
    """The texts of a packet. Some programs leave out the last NUL."""
    return data.removesuffix(b"\0").split(b"\0") if data else []


class PacketReader:
    """Takes bytes as they come, and gives whole packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0

    @property
    def buffered(self) -> int:
        """Octets that were not given yet."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def peek(self) -> bytes:
        """The next command; empty if it is not there yet."""
        return bytes(self._buffer[self._at + 4 : self._at + 5])

    def next(self) -> tuple[bytes, bytes] | None:
        """The next command and its data; None if it is not there yet. Raises MilterError for a length that cannot be."""
        begin = self._at + 4
        if len(self._buffer) < begin:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._at)
        if not 1 <= length <= LARGEST:
            raise MilterError(f"a packet of {length} octets, where 1 to {LARGEST} can be")
        if len(self._buffer) < begin + length:
            return None
        self._at = begin + length
        return bytes(self._buffer[begin : begin + 1]), bytes(self._buffer[begin + 1 : begin + length])
