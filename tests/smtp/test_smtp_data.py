"""What is sent for a mail: no server can take a part of it for its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore.smtp._data import DataReceiver
from mqcore.smtp.content import make_content, with_crlf


@pytest.mark.parametrize(
    ("mime", "content"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\n", b"a\r\n.\r\n"),
        (b"a\r\n\r\nb\r\n", b"a\r\n\r\nb\r\n.\r\n"),
        (b"a\r\nb\nc", b"a\r\nb\r\nc\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b"a\n.\nb\n..\n", b"a\r\n..\r\nb\r\n...\r\n.\r\n"),
        (b"a.\n.b\n", b"a.\r\n..b\r\n.\r\n"),
        (b"a\rb\n", b"a b\r\n.\r\n"),
        (b"a\r\r\nb\r", b"a \r\nb \r\n.\r\n"),
        (b"\xe9\xff\n", b"\xe9\xff\r\n.\r\n"),
    ],
)
def test_line_ends_and_dots(mime, content):
    assert make_content(mime) == content


@pytest.mark.parametrize("before", [b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r"])
@pytest.mark.parametrize("after", [b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r"])
def test_smuggling(before, after):
    """A second message hidden in the first, behind whatever a server may take for the end of that."""
    content = make_content(b"one" + before + b"." + after + b"MAIL FROM:<admin@example.org>\r\n")
    body = content.removesuffix(b"\r\n.\r\n")
    assert b"\r\n.\r\n" not in body
    assert body.count(b"\r") == body.count(b"\n") == body.count(b"\r\n")


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n.\r\n", b"\0"])).map(b"".join))
def test_it_is_what_a_few_replacements_make(mime):
    content = with_crlf(mime)
    if content and not content.endswith(b"\n"):
        content += b"\r\n"
    if content.startswith(b"."):
        content = b"." + content
    assert make_content(mime) == content.replace(b"\n.", b"\n..") + b".\r\n"


@pytest.mark.parametrize("mime", [None, "text", bytearray(b"text")])
def test_only_bytes_can_be_sent(mime):
    with pytest.raises(TypeError):
        make_content(mime)


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n.\r\n"])).map(b"".join))
def test_what_our_own_server_makes_of_it(mime):
    receiver = DataReceiver(1 << 20)
    content = make_content(mime)
    assert receiver.take(content) == len(content)
    lines = mime.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if lines and not lines.endswith(b"\n"):
        lines += b"\n"
    assert receiver.finish() == lines.replace(b"\n", b"\r\n")
