"""Mails as MailerQ's JSON, both ways, with orjson and without."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import tracemalloc

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.mail.amqp import body as module
from mqcore.mail.amqp.body import MAX_BODY, Body, Unreadable, read_body, write_body

MAIL = b"Subject: hello\r\n\r\nhello\r\n"


@pytest.fixture(params=["orjson", "json"], autouse=True)
def parser(request, monkeypatch):
    if request.param == "json":
        monkeypatch.setattr(module, "orjson", None)
    elif module.orjson is None:
        pytest.skip("orjson is not installed (pip: orjson)")


def test_a_mail_as_mailerq_has_it():
    body = json.dumps({"envelope": "a@b", "recipient": "c@d", "mime": MAIL.decode(), "keepmime": True, "x": {"y": [1, None]}})
    assert read_body(body.encode()) == Body(
        MAIL, {"envelope": "a@b", "recipient": "c@d", "keepmime": True, "x": {"y": [1, None]}}
    )


def test_a_mail_as_it_is():
    for content_type in ("message/rfc822", "Message/RFC822; charset=utf-8"):
        assert read_body(b"\xff\0", content_type) == Body(b"\xff\0", {})
    assert read_body(gzip.compress(b"\xff\0"), "message/rfc822", "gzip") == Body(b"\xff\0", {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)
KNOWN = st.dictionaries(
    st.text(st.characters(codec="utf-8")).filter(
        lambda name: name not in ("mime", "mime-base64", "envelope", "recipient", "recipients")
    ),
    JSON,
    max_size=4,
)


@settings(max_examples=examples(300), deadline=None)
@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")), KNOWN)
def test_each_mail_comes_out_byte_for_byte(mime, known):
    body = write_body(mime, known)
    assert read_body(body) == Body(mime, known)
    assert read_body(gzip.compress(body), "application/json", "GZIP") == Body(mime, known)


def test_what_is_written():
    assert json.loads(write_body(b"a\xc3\xa9\r\n", {"mime": "old", "mime-base64": "old", "b": 1})) == {"mime": "aé\r\n", "b": 1}
    assert json.loads(write_body(b"\xff", {"mime": "old"})) == {"mime-base64": base64.b64encode(b"\xff").decode()}
    assert json.loads(write_body(b"", {1: 2, "a": "é"})) == {"1": 2, "a": "é", "mime": ""}
    assert "é".encode() in write_body(b"", {"a": "é"})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", datetime.datetime(2026, 1, 1), "\ud800"])
def test_what_json_cannot_hold(value):
    with pytest.raises(ValueError, match="it cannot be written as JSON"):
        write_body(b"", {"a": value})


def test_what_json_holds_without_end():
    value: dict = {}
    value["a"] = value
    with pytest.raises(ValueError, match="it cannot be written as JSON"):
        write_body(b"", value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "its body is no JSON"),
        (b"{", "its body is no JSON"),
        (b'{"mime": ""} x', "its body is no JSON"),
        (b'{"mime": "", "a": NaN}', "its body is no JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"mime": "\xff"}', "not UTF-8"),
        ('{"mime": ""}'.encode("utf-16"), "not UTF-8"),
        (b"[]", "its body is JSON, but list, where an object is needed"),
        (b"null", "NoneType, where an object is needed"),
        (b"{}", "it has no 'mime'"),
        (b'{"key": "abc"}', "no message store"),
        (b'{"mime": {"subject": "x"}}', "its 'mime' is dict, where text is needed"),
        (b'{"mime": null}', "its 'mime' is NoneType"),
        (b'{"mime-base64": 1}', "its 'mime-base64' is int"),
        (b'{"mime-base64": "%%%"}', "its 'mime-base64' is no base64"),
        (b'{"mime-base64": "\xc3\xa9"}', "its 'mime-base64' is no base64"),
        (b'{"mime-base64": "YQ"}', "its 'mime-base64' is no base64"),
        (b'{"mime": "", "mime-base64": ""}', "both"),
        (b'{"mime": "\\ud800"}', "its 'mime' is no text"),
        (b'{"mime": "", "envelope": 1}', "its 'envelope' is no address"),
        (b'{"mime": "", "recipient": "a@b\\nc"}', "its 'recipient' is no address"),
        (b'{"mime": "", "recipients": "a@b"}', "its 'recipients' is no list of addresses"),
        (b'{"mime": "", "recipients": ["a@b", null]}', "its 'recipients' is no list of addresses"),
        (b'{"mime": "", "recipients": ["a\\r"]}', "its 'recipients' is no list of addresses"),
        (b'{"mime": "", "a": ' + b"[" * 100_000, "its body is"),
        (b'{"mime": "", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "its body is"),
        (b'{"mime": "", "a": ' + b"9" * 10_000 + b"", "its body is no JSON"),
    ],
)
def test_what_is_no_mail(body, reason):
    with pytest.raises(Unreadable, match=reason):
        read_body(body)


def test_half_a_surrogate_pair_beside_the_mail_is_kept():
    assert read_body(b'{"mime": "a", "b": "\\ud800"}') == Body(b"a", {"b": "\ud800"})


@pytest.mark.parametrize(
    ("known", "json"),
    [({"envelope": None, "recipient": None, "recipients": None}, True), ({"envelope": "", "recipients": []}, True)],
)
def test_addresses_that_may_be(known, json):
    assert read_body(write_body(b"", known)) == Body(b"", known)


def test_base64_in_lines():
    assert read_body(b'{"mime-base64": "YWJj\\r\\nZA==\\n"}').mime == b"abcd"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "its gzip ends too early"),
        (MAIL, "its gzip is broken"),
        (gzip.compress(MAIL)[:-1], "its gzip ends too early"),
        (gzip.compress(MAIL)[:-5] + b"xxxxx", "its gzip is broken"),
        (gzip.compress(MAIL) + MAIL, "its gzip is broken"),
        (gzip.compress(bytes(MAX_BODY + 1)), "it has more than 52428800 octets"),
        (gzip.compress(bytes(MAX_BODY)) + gzip.compress(b"x"), "it has more than 52428800 octets"),
    ],
)
def test_gzip_that_is_none(body, reason):
    with pytest.raises(Unreadable, match=reason):
        read_body(body, "message/rfc822", "gzip")


def test_gzip_in_members():
    assert read_body(gzip.compress(b"a") + gzip.compress(b"b"), "message/rfc822", "gzip").mime == b"ab"


def test_a_bomb_takes_no_memory():
    bomb = gzip.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable, match="52428800 octets"):
            read_body(bomb, None, "gzip")
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_BODY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["deflate", "br", "gzip, gzip"])
def test_encodings_that_are_not_known(encoding):
    with pytest.raises(Unreadable, match="is not known; it can be gzip"):
        read_body(b"", None, encoding)


@pytest.mark.parametrize("encoding", [None, "", "identity", "UTF-8"])
def test_encodings_that_change_nothing(encoding):
    assert read_body(b'{"mime": "a"}', "application/json", encoding).mime == b"a"
