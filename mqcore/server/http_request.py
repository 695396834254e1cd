"""HTTP requests that have no body: bytes in, requests out, without any I/O (RFC 9110 and 9112).

Whatever two parsers might read differently is refused: lines that end in LF alone, headers that are folded or have blanks
before the colon, any body, and a Host that is there twice. So nobody can hide a request in another one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_HEAD = 8192
"""Octets of a request with its headers."""
MAX_HEADERS = 64

_BLANK = re.compile(rb"(?:\r\n)+")
_REQUEST = re.compile(rb"([A-Za-z]{1,16}) ([!-~]{1,2048}) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    """By names in small letters; what is there several times is joined by commas."""
    keeps_alive: bool


class BadRequest(Exception):
    """What is no request that is taken here: nothing more can be read from this client."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class RequestParser:
    """Of one connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    @property
    def buffered(self) -> int:
        """Octets that wait to be taken."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Add what the client sent."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """The next one; None when more must arrive. Raises BadRequest."""
        if blank := _BLANK.match(self._buffer):  # RFC 9112, 2.2
            del self._buffer[: blank.end()]
            self._searched = 0
        end = self._buffer.find(b"\r\n\r\n", max(0, self._searched - 3), MAX_HEAD)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched >= MAX_HEAD:
                raise BadRequest(431, "the request and its headers have too many octets")
            if b"\n" in self._buffer and re.search(rb"(?<!\r)\n", self._buffer):
                raise BadRequest(400, "lines end in CR LF")
            return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._searched = 0
        first, *lines = head.split(b"\r\n")
        return _make(first, _read_headers(lines))


def _read_headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MAX_HEADERS:
        raise BadRequest(431, "there are too many headers")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadRequest(400, "a header is NAME: VALUE on one line")
        name, value = match[1].decode("ascii").lower(), match[2].decode("latin-1").rstrip(" \t")
        if name in headers:
            if name in ("host", "content-length", "transfer-encoding"):
                raise BadRequest(400, f"{name} is there twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _make(first: bytes, headers: dict[str, str]) -> Request:
    match = _REQUEST.fullmatch(first)
    if match is None:
        raise BadRequest(400, "a request is METHOD PATH HTTP/1.1")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise BadRequest(505, "HTTP/1.1 is spoken here")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise BadRequest(413, "a request has no body here")
    if minor != "0" and "host" not in headers:
        raise BadRequest(400, "a request of HTTP/1.1 has a Host")
    if not target.startswith("/"):
        raise BadRequest(400, "a path begins with /")
    connection = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return Request(method, target.partition("?")[0], headers, minor != "0" and "close" not in connection)
