"""The PROXY protocol, without a socket: both versions, whole and byte by byte, and all that is none."""

from __future__ import annotations

import ipaddress
import struct
from collections import deque

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.smtp.proxy import MAX_REST, SIGNATURE, ProxyError, ProxyReader


def header(family: int, rest: bytes, *, command: int = 0x21, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if size is None else size) + rest


V4 = ipaddress.ip_address("192.0.2.7").packed + ipaddress.ip_address("198.51.100.1").packed + struct.pack("!HH", 40000, 25)
V6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("2001:db8::1").packed + struct.pack("!HH", 40000, 25)
GOOD = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 25\r\n", "192.0.2.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 25\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", ""),
    (header(0x11, V4), "192.0.2.7"),
    (header(0x11, V4 + b"\x03\0\4abcd"), "192.0.2.7"),
    (header(0x21, V6), "2001:db8::7"),
    (header(0x31, b"/run/x".ljust(216, b"\0")), ""),
    (header(0x00, b""), ""),
    (header(0x00, b"x" * 100), ""),
    (header(0x11, V4, command=0x20), ""),
    (header(0x00, b"", command=0x20), ""),
    (header(0x11, V4 + b"x" * (MAX_REST - 12)), "192.0.2.7"),
]
BAD = [
    b"EHLO x\r\n",
    b"GET / HTTP/1.0\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"PROXX",
    b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
    b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7\xff 198.51.100.1 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::1 1 2\r\n",
    b"PROXY TCP4 " + b"1" * 200,
    header(0x11, V4, command=0x11),
    header(0x11, V4, command=0x22),
    header(0x41, V4),
    header(0x13, V4),
    header(0x12, V4),
    header(0x11, V4[:-1]),
    header(0x21, V4),
    header(0x31, V6),
    header(0x11, V4, size=MAX_REST + 1),
    header(0x11, V4, size=65535),
]


@pytest.mark.parametrize(("text", "address"), GOOD)
@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_headers(text, address, step):
    """Nothing of what follows is taken, as that may be TLS."""
    reader = ProxyReader()
    stream, taken = text + b"EHLO x\r\n", 0
    while not reader.done:
        assert taken < len(text)
        taken += reader.feed(stream[taken : taken + step])
    assert taken == len(text) and reader.address == address


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("step", [1, 10_000])
def test_what_is_no_header(text, step):
    reader = ProxyReader()
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    with pytest.raises(ProxyError):
        deque(map(reader.feed, pieces), maxlen=0)
    assert not reader.done


@settings(max_examples=examples(500), deadline=None)
@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\0\x0c"]),
    st.lists(st.binary(max_size=300), min_size=1, max_size=5),
)
def test_whatever_comes(begin, pieces):
    """An address of the internet or none, and never more than is there, in whatever pieces."""

    def read(pieces):
        reader, taken = ProxyReader(), 0
        try:
            for piece in pieces:
                taken += (count := reader.feed(piece))
                assert 0 < count <= len(piece) or not piece
                if reader.done:
                    assert reader.address == "" or ipaddress.ip_address(reader.address)
                    return taken, reader.address
        except ProxyError:
            return None
        return taken, None

    whole = begin + b"".join(pieces)
    one = read([whole])
    assert read([whole[at : at + 1] for at in range(len(whole))]) == one
