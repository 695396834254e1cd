"""Field tables and properties, both ways."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import Any

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.amqp._properties import decode_properties, encode_properties
from mqcore.amqp._tables import decode_table, encode_table
from mqcore.amqp.client import Properties, ProtocolError, Timestamp
from mqcore.amqp.methods import BY_NAME, decode, encode

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False),
        TEXTS,
        st.binary(max_size=40),
        st.integers(0, (1 << 64) - 1).map(Timestamp),
        st.builds(lambda mantissa, scale: Decimal(mantissa).scaleb(-scale), st.integers(0, (1 << 32) - 1), st.integers(0, 255)),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=6)


def table(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets


def field(octets: bytes) -> bytes:
    """A table with one field, `a`, of this type and value."""
    return table(b"\x01a" + octets)


@settings(max_examples=examples(500), deadline=None)
@given(TABLES)
def test_tables_come_back_as_they_were(value):
    back = decode_table(encode_table(value))
    assert back == value
    assert repr(back) == repr(value) or any(isinstance(item, Decimal) for item in flat(value))


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for inner in value.values() for item in flat(inner)]
    if isinstance(value, list):
        return [item for inner in value for item in flat(inner)]
    return [value]


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        (b"t\x01", True),
        (b"t\x00", False),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xfe", -2),
        (b"i\xff\xff\xff\xfe", 4294967294),
        (b"l\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"L\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"f\x3f\x80\x00\x00", 1.0),
        (b"d\x3f\xf0\x00\x00\x00\x00\x00\x00", 1.0),
        (b"D\x02\x00\x00\x04\xd2", Decimal("12.34")),
        (b"S\x00\x00\x00\x02hi", "hi"),
        (b"S\x00\x00\x00\x01\xff", "\udcff"),
        (b"x\x00\x00\x00\x02\xff\x00", b"\xff\0"),
        (b"A\x00\x00\x00\x03t\x01V", [True, None]),
        (b"F\x00\x00\x00\x03\x01bV", {"b": None}),
        (b"T\xff\xff\xff\xff\xff\xff\xff\xff", Timestamp((1 << 64) - 1)),
        (b"V", None),
    ],
)
def test_each_type(octets, value):
    assert decode_table(field(octets)) == {"a": value}
    assert type(decode_table(field(octets))["a"]) is type(value)


def test_a_float_that_is_no_number():
    assert math.isnan(decode_table(encode_table({"a": math.nan}))["a"])


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        (2147483647, b"I\x7f\xff\xff\xff"),
        (2147483648, b"l\x00\x00\x00\x00\x80\x00\x00\x00"),
        (-2147483648, b"I\x80\x00\x00\x00"),
        (("a",), b"A\x00\x00\x00\x06S\x00\x00\x00\x01a"),
        ("\udcff", b"S\x00\x00\x00\x01\xff"),
    ],
)
def test_how_values_are_written(value, octets):
    assert encode_table({"a": value}) == field(octets)


@settings(max_examples=examples(200), deadline=None)
@given(TABLES)
def test_a_table_that_ends_too_early(value):
    data = encode_table(value)
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decode_table(data[:end])


@settings(max_examples=examples(1000), deadline=None)
@given(st.binary(max_size=60))
def test_any_octets_are_a_table_or_are_refused(octets):
    for data in (octets, table(octets), field(octets)):
        try:
            value = decode_table(data)
        except ProtocolError:
            continue
        assert isinstance(value, dict)


def nested(depth: int, kind: bytes) -> bytes:
    octets = b"V"
    for _ in range(depth):
        octets = kind + table((b"\x01a" if kind == b"F" else b"") + octets)
    return field(octets)


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_how_deep_tables_may_be(kind):
    decode_table(nested(32, kind))
    with pytest.raises(ProtocolError, match="more than 32 tables within each other"):
        decode_table(nested(33, kind))
    with pytest.raises(ProtocolError, match="more than 32"):
        decode_table(nested(10_000, kind))


def test_how_deep_tables_may_be_that_are_written():
    for make in (lambda inner: {"a": inner}, lambda inner: [inner]):
        value: Any = None
        for _ in range(32):
            value = make(value)
        assert decode_table(encode_table({"a": value})) == {"a": value}
        with pytest.raises(ValueError, match="more than 32"):
            encode_table({"a": make(value)})
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ValueError, match="more than 32"):
        encode_table(endless)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ({"a": 1 << 63}, ValueError, "64 bits"),
        ({"a": -(1 << 63) - 1}, ValueError, "64 bits"),
        ({"a": object()}, TypeError, "no type for object"),
        ({"a": {1: 2}}, TypeError, "names in a table are str, not int"),
        ({"a" * 256: 1}, ValueError, "256 octets"),
        ({"a": "\ud800"}, ValueError, "surrogates"),
        ({"a": Decimal(-1)}, ValueError, "no room"),
        ({"a": Decimal("NaN")}, ValueError, "no room"),
        ({"a": Decimal(1 << 32)}, ValueError, "no room"),
        ({"a": Decimal("1e1")}, ValueError, "no room"),
        ({"a": Timestamp(-1)}, ValueError, "no room for the time -1"),
        ({"a": Timestamp(1 << 64)}, ValueError, "no room for the time"),
    ],
)
def test_what_cannot_be_written(value, error, text):
    with pytest.raises(error, match=text):
        encode_table(value)


PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | TEXTS,
    content_encoding=st.none() | TEXTS,
    headers=TABLES,
    delivery_mode=st.none() | st.integers(0, 255),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | TEXTS,
    reply_to=st.none() | TEXTS,
    expiration=st.none() | TEXTS,
    message_id=st.none() | TEXTS,
    timestamp=st.none() | st.integers(0, (1 << 64) - 1),
    type=st.none() | TEXTS,
    user_id=st.none() | TEXTS,
    app_id=st.none() | TEXTS,
    cluster_id=st.none() | TEXTS,
)


@settings(max_examples=examples(300), deadline=None)
@given(PROPERTIES)
def test_properties_come_back_as_they_were(properties):
    data = encode_properties(properties)
    assert decode_properties(data) == properties
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decode_properties(data[:end])
    with pytest.raises(ProtocolError, match="something behind"):
        decode_properties(data + b"\0")


@pytest.mark.parametrize(
    ("properties", "error"),
    [
        (Properties(message_id="x" * 256), ValueError),
        (Properties(priority=256), ValueError),
        (Properties(timestamp=-1), ValueError),
        (Properties(timestamp=1 << 64), ValueError),
        (Properties(message_id=7), TypeError),  # type: ignore[arg-type]
    ],
)
def test_properties_that_cannot_be_written(properties, error):
    with pytest.raises(error):
        encode_properties(properties)


def test_methods_come_back_as_they_were():
    samples: dict[str, Any] = {
        "octet": 200, "short": 60_000, "long": 4_000_000_000, "longlong": (1 << 64) - 1, "bit": True, "shortstr": "é" * 127,
        "longstr": b"\xff" * 300, "table": {"a": [1, {"b": None}]},
    }  # fmt: skip
    for name, form in BY_NAME.items():
        arguments = [samples[kind] for kind in form.kinds]
        payload = encode(name, *arguments)
        assert decode(payload) == (name, arguments)
        for end in range(len(payload)):
            with pytest.raises(ProtocolError):
                decode(payload[:end])
        with pytest.raises(ProtocolError, match="something behind"):
            decode(payload + b"\0")


def test_bits_share_an_octet():
    assert encode("queue.declare", 0, "q", False, True, False, True, False, {}) == b"\0\x32\0\x0a\0\0\x01q\x0a\0\0\0\0"


def test_arguments_that_cannot_be_written():
    with pytest.raises(ValueError, match="does not fit into 2 octets"):
        encode("basic.qos", 0, 65_536, False)
    with pytest.raises(ValueError, match="does not fit into 8 octets"):
        encode("basic.ack", 1 << 64, False)
    with pytest.raises(ValueError, match="300 octets"):
        encode("basic.cancel", "x" * 300, False)
