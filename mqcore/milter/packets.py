"""Packets: a length, a command of one letter, and data."""

from __future__ import annotations

import struct
from collections.abc import Iterator

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
        self._data = b""
        self._at = 0
        self._more: list[bytes] = []
        """What comes behind the data, until the packet there is whole."""
        self._missing = 0

    @property
    def buffered(self) -> int:
        """Octets that were not given yet."""
        return len(self._data) - self._at + sum(map(len, self._more))

    def feed(self, data: bytes) -> None:
        if len(data) < self._missing:
            self._more.append(data)
            self._missing -= len(data)
            return
        self._data = b"".join([self._data[self._at :], *self._more, data])
        self._at = self._missing = 0
        self._more.clear()

    def peek(self) -> bytes:
        """The next command; empty if it is not there yet."""
        return self._data[self._at + 4 : self._at + 5]

    def next(self) -> tuple[bytes, bytes] | None:
        """The next command and its data; None if it is not there yet. Raises MilterError for a length that cannot be."""
        data, begin = self._data, self._at + 4
        if len(data) < begin:
            return None
        (length,) = _LENGTH.unpack_from(data, self._at)
        if not 1 <= length <= LARGEST:
            raise MilterError(f"a packet of {length} octets, where 1 to {LARGEST} can be")
        end = begin + length
        if len(data) < end:
            if not self._missing:
                self._missing = end - len(data)
            return None
        self._at = end
        return data[begin : begin + 1], data[begin + 1 : end]

    def next_among(self, commands: bytes) -> Iterator[tuple[int, bytes]]:
        """Those that follow, as numbers and with their data, as far as they are among these: what comes in great numbers is
        read more quickly."""
        data, at = self._data, self._at
        last = len(data) - 5
        while at <= last and (command := data[at + 4]) in commands:
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + 4 + length
            if end > len(data) or not 1 <= length <= LARGEST:
                return
            self._at = end
            yield command, data[at + 5 : end]
            at = end
