"""Edits of a header, against what Postfix and Sendmail do with them."""

from __future__ import annotations

import struct

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.milter import edits
from mqcore.milter.events import Field

names = st.sampled_from([b"To", b"to", b"From", b"Received", b"X-A"])
values = st.sampled_from([b" a", b" b", b"", b" c\n\td", b"\t"])
headers = st.lists(st.tuples(names, values), max_size=8)


def packets(edits: list[bytes]) -> list[tuple[bytes, int, bytes, bytes]]:
    found = []
    for each in edits:
        length, command, place = struct.unpack_from("!IcI", each)
        assert length == len(each) - 4
        name, value, end = each[9:].split(b"\0")
        assert end == b""
        found.append((command, place, name, value))
    return found


def change(fields: list[Field], number: int, name: bytes, value: bytes, first: int) -> None:
    """The `number`th of its name, from the place `first` on; without a value it goes."""
    for place in range(first, len(fields)):
        if fields[place][0].lower() == name.lower():
            number -= 1
            if number == 0:
                if value:
                    fields[place] = (name, value)
                else:
                    del fields[place]
                return
    raise AssertionError("there is no such field")


def as_postfix(old: list[Field], edits: list[bytes]) -> list[Field]:
    """cleanup_milter.c: insertions count the server's own field on top, changes do not."""
    fields = [(b"Received", b" by us"), *old]
    for command, place, name, value in packets(edits):
        if command == b"i":
            fields.insert(place, (name, value))
        else:
            change(fields, place, name, value, 1)
    return fields[1:]


def as_sendmail(old: list[Field], edits: list[bytes]) -> list[Field]:
    """Changes count what was sent, and leave the places of the others; 1 is the top of all."""
    fields: list[Field | None] = list(old)
    tops: list[Field] = []
    for command, place, name, value in packets(edits):
        if command == b"i":
            assert place == 1
            tops.insert(0, (name, value))
        else:
            same = [at for at, field in enumerate(old) if field[0].lower() == name.lower()]
            fields[same[place - 1]] = (name, value) if value else None
    return [*tops, *(field for field in fields if field is not None)]


@settings(max_examples=examples(2000))
@given(headers, headers)
def test_postfix_makes_the_new_header_of_the_old(old: list[Field], new: list[Field]) -> None:
    assert as_postfix(old, edits.postfix_edits(old, new)) == new


@settings(max_examples=examples(2000))
@given(headers, headers)
def test_sendmail_makes_the_same_content(old: list[Field], new: list[Field]) -> None:
    assert sorted(as_sendmail(old, edits.sendmail_edits(old, new))) == sorted(new)


@settings(max_examples=examples(500))
@given(headers, st.integers(0, 8), st.tuples(names, values))
def test_one_field_more_is_one_packet(old: list[Field], place: int, field: Field) -> None:
    new = [*old[:place], field, *old[place:]]
    assert len(edits.postfix_edits(old, new)) == len(edits.sendmail_edits(old, new)) == 1


def test_many_fields_that_differ_are_not_compared_with_each_other() -> None:
    old = [(b"X-%d" % number, b" a") for number in range(5000)]
    new = [(b"Y-%d" % number, b" a") for number in range(5000)]
    made = edits.postfix_edits([(b"A", b""), *old, (b"B", b"")], [(b"A", b""), *new, (b"B", b"")])
    assert as_postfix([(b"A", b""), *old, (b"B", b"")], made) == [(b"A", b""), *new, (b"B", b"")]


@settings(max_examples=examples(1000))
@given(st.lists(st.tuples(names, st.sampled_from([b" a", b"", b" c\n\td", b"x\n y"])), max_size=5), st.binary(max_size=20))
def test_what_is_joined_can_be_split(fields: list[Field], body: bytes) -> None:
    assert edits.split(edits.join(fields, body)) == (fields, body)


@pytest.mark.parametrize(
    ("mime", "fields", "body"),
    [
        (b"", [], b""),
        (b"\r\n", [], b""),
        (b"\r\nbody", [], b"body"),
        (b"A: b", [(b"A", b" b")], b""),
        (b"A: b\r\n", [(b"A", b" b")], b""),
        (b"A: b\nC: d\n\nbody\n", [(b"A", b" b"), (b"C", b" d")], b"body\n"),
        (b"New: 1\nA: b\r\n\tc\r\n\r\nbody", [(b"New", b" 1"), (b"A", b" b\n\tc")], b"body"),
        (b"A:\r\n\r\n", [(b"A", b"")], b""),
    ],
)
def test_what_plugins_make_is_split(mime: bytes, fields: list[Field], body: bytes) -> None:
    assert edits.split(mime) == (fields, body)


@pytest.mark.parametrize(
    "mime", [b"no field\r\n\r\n", b" folded\r\n\r\n", b": x\r\n", b"A B: c\r\n\r\n", b"A: b\r\n\0: c\r\n\r\n"]
)
def test_what_is_no_header_is_told(mime: bytes) -> None:
    with pytest.raises(ValueError, match="is no field"):
        edits.split(mime)
