"""Until when a certificate is good: all that is read of it, as `ssl` tells that of the other side's only."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

VERSION, UTC_TIME = 0xA0, 0x17


def read_not_after(file: str | None) -> float | None:
    """Of the first certificate in a file in PEM, in seconds since 1970; None if it cannot be read."""
    if file is None:
        return None
    try:
        with open(file, encoding="latin-1") as opened:
            first = _PEM.search(opened.read())
        return None if first is None else not_after(ssl.PEM_cert_to_DER_cert(first[0]))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def not_after(certificate: bytes) -> float:
    """Of a certificate in DER (RFC 5280, 4.1). Raises ValueError, IndexError or StopIteration for what is none."""
    (_, whole), *_ = _values(certificate)
    (_, signed), *_ = _values(whole)
    fields = _values(signed)
    if next(fields)[0] == VERSION:
        next(fields)  # the serial number
    next(fields)  # the algorithm
    next(fields)  # the issuer
    _, (tag, end) = _values(next(fields)[1])
    text = end.decode("ascii")
    if tag == UTC_TIME:  # years of two digits, from 1950 on
        text = f"{19 if text >= '5' else 20}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _values(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value, one after the other."""
    at = 0
    while at < len(encoded):
        tag, size = encoded[at], encoded[at + 1]
        at += 2
        if size >= 0x80:
            count = size - 0x80
            size = int.from_bytes(encoded[at : at + count], "big")
            at += count
        yield tag, encoded[at : at + size]
        at += size
