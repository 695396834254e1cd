"""The PROXY protocol of HAProxy, versions 1 and 2: what a balancer says of a client before that is heard.

See https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt.
"""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_LINE = 107
MAX_REST = 4096
"""Octets that version 2 may have behind its first 16: addresses, and what else a balancer says, which is not looked at."""

_SIZES = {1: 12, 2: 36, 3: 216}
"""Octets of two addresses and ports, by their family: IPv4, IPv6, Unix."""


class ProxyError(Exception):
    """What came is no header of the PROXY protocol."""


class ProxyReader:
    """Finds the header in what arrives, in whatever pieces, and takes nothing behind it.

    `done`: it is all there. `address`: the client's, then; empty if the header says that it is the balancer's own
    connection (LOCAL, UNKNOWN), or names no address of the internet.
    """

    def __init__(self) -> None:
        self.done = False
        self.address = ""
        self._text = b""

    @property
    def has_begun(self) -> bool:
        return bool(self._text)

    def feed(self, data: bytes) -> int:
        """How much of `data` belongs to the header. Raises ProxyError."""
        before = len(self._text)
        whole = self._text + data
        end = self._find_end(whole)
        self._text = whole if end is None else whole[:end]
        if end is not None:
            self.address = _parse_2(self._text) if whole.startswith(SIGNATURE) else _parse_1(self._text)
            self.done = True
        return len(self._text) - before

    def _find_end(self, text: bytes) -> int | None:
        """Where the header ends; None if more must come."""
        if SIGNATURE.startswith(text[: len(SIGNATURE)]):
            if len(text) < 16:
                return None
            size = 16 + int(struct.unpack_from("!H", text, 14)[0])
            if size > 16 + MAX_REST:
                raise ProxyError(f"a header of {size} octets")
            return size if len(text) >= size else None
        if not b"PROXY ".startswith(text[:6]):
            raise ProxyError("there is none")
        end = text.find(b"\r\n", 0, MAX_LINE)
        if end < 0 and len(text) >= MAX_LINE:
            raise ProxyError("a line without an end")
        return None if end < 0 else end + 2


def _parse_1(line: bytes) -> str:
    words = line[:-2].split(b" ")
    if words[1] == b"UNKNOWN":
        return ""
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyError("a line that is none of version 1")
    if b"%" in line:
        raise ProxyError("a line with a zone")
    kind = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        client, _ = (kind(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise ProxyError("a line with a wrong address") from None
    for port in words[4:]:
        if not (port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
            raise ProxyError("a line with a wrong port")
    return str(client)


def _parse_2(header: bytes) -> str:
    version, command = divmod(header[12], 16)
    family, transport = divmod(header[13], 16)
    if version != 2 or command > 1 or family > 3 or transport > 2:
        raise ProxyError("a header that is none of version 2")
    if command == 0 or family == 0:
        return ""
    if transport != 1:
        raise ProxyError("a header that is not about a stream")
    if len(header) - 16 < _SIZES[family]:
        raise ProxyError("a header that is too short for its addresses")
    if family == 1:
        return str(ipaddress.IPv4Address(header[16:20]))
    return str(ipaddress.IPv6Address(header[16:32])) if family == 2 else ""
