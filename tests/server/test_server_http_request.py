"""Requests of HTTP, in whatever pieces: what two parsers might read differently is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqcore.server.http_request import MAX_HEAD, BadRequest, Request, RequestParser

GET = b"GET /metrics HTTP/1.1\r\nHost: a:1\r\n\r\n"


def read(*pieces: bytes) -> list[Any]:
    """The requests, and the status with which it ends if that is one."""
    parser, found = RequestParser(), []
    for piece in pieces:
        parser.receive(piece)
        try:
            while (request := parser.next_request()) is not None:
                found.append(request)
        except BadRequest as error:
            return [*found, error.status]
    return found


def test_a_request():
    assert read(GET) == [Request("GET", "/metrics", {"host": "a:1"}, True)]
    (request,) = read(b"HEAD /x?y=1 HTTP/1.0\r\nConnection: keep-alive\r\naccept: a\r\nAccept:  b \r\n\r\n")
    assert request == Request("HEAD", "/x", {"connection": "keep-alive", "accept": "a, b"}, False)
    (request,) = read(b"\r\n\r\nGET / HTTP/1.1\r\nHost:\r\nConnection: TE, Close\r\n\r\n")
    assert request == Request("GET", "/", {"host": "", "connection": "TE, Close"}, False)


def test_requests_one_behind_the_other():
    assert [request.path for request in read(GET + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)] == ["/metrics", "/", "/metrics"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, b"GET / HTTP/1.1\r\n\r\n"),  # without a Host
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\nHost: a\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n"),
        (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /\r\n\r\n"),
        (400, b"EHLO client.example\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        (505, b"PRI / HTTP/2.0\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /"),
        (413, b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (413, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 65 + b"\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD),
        (431, b"G" * MAX_HEAD),
    ],
)
def test_what_is_refused(status, text):
    assert read(text) == [status]
    assert read(GET + text)[1:] == [status]
    assert read(*(text[at : at + 1] for at in range(len(text)))) == [status]


def test_blank_lines_before_a_request():
    assert read(b"\r\n" * 100_000 + GET, b"\r", b"\n" + GET) == read(GET, GET)


def test_what_waits_is_no_more_than_a_head():
    parser = RequestParser()
    for size in range(MAX_HEAD - 1):
        parser.receive(b"G")
        if size % 1000 == 0:
            assert parser.next_request() is None
    parser.receive(b"G")
    with pytest.raises(BadRequest):
        parser.next_request()


LINES = st.sampled_from([
    b"GET / HTTP/1.1", b"HEAD /metrics HTTP/1.0", b"POST / HTTP/1.1", b"Host: a", b"Host: b", b"Content-Length: 3",
    b"Transfer-Encoding: chunked", b" folded", b"X : y", b"", b"", b"abc", b"\0", b"\xff",
])  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=12).map(lambda lines: b"".join(itertools.chain(*lines)))


@given(STREAMS | st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
@example(GET * 2, [3, 4, 35, 36])
def test_in_whatever_pieces_it_is_the_same(stream, cuts):
    """And nothing but requests and refusals comes of any bytes."""
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(places)]
    whole = read(stream)
    assert read(*pieces) == whole
    for request in whole:
        if isinstance(request, Request):
            assert request.path.startswith("/")
            assert "transfer-encoding" not in request.headers
            assert request.headers.get("content-length", "0") == "0"
