"""Whatever bytes a broker sends, in whatever pieces: events, or one clear end; the same for every split; and each publish has
one outcome.

The stored inputs in `corpus/` are what a broker could say once two channels are open, broken in ways that a client could fall
for, or found by fuzzing. Those in `recorded/` are what RabbitMQ said to `Talk`, from the beginning on (`record.py`): pieces as
they came, each with its size in front (4 octets). All are tried whole, byte by byte, and with octets changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from amqp_tools import (
    GREETING,
    NONE,
    OPEN_OK,
    START,
    TUNE,
    content,
    cut,
    deliver,
    frame,
    frames,
    method,
    published,
    returned,
    seen,
)
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mqcore.amqp.client import (
    ChannelOpened,
    ClientOptions,
    ClientProtocol,
    ConfirmSelected,
    ConnectionClosed,
    ConnectionOpened,
    Delivery,
    Event,
    Outcome,
    QueueDeclared,
    StateError,
)

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.amqp"))
RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.talk"))


class Talk:
    """As a program talks to a broker: channels, confirms, publishes, acks of all that comes."""

    def __init__(self) -> None:
        self.protocol = ClientProtocol(
            ClientOptions(user="guest", password="guest", channel_max=3, frame_max=4096, max_body=5000)
        )
        self.events: list[Event] = []
        self.tags: list[tuple[int, int]] = []

    def say(self, data: bytes) -> None:
        for event in self.protocol.receive(data):
            self.events.append(event)
            with contextlib.suppress(StateError):  # it is closed, by what came in the same piece
                self.answer(event)

    def answer(self, event: Event) -> None:
        protocol = self.protocol
        if isinstance(event, ConnectionOpened):
            protocol.open_channel()
        elif isinstance(event, ChannelOpened):
            protocol.select_confirm(event.channel)
            protocol.declare_queue(event.channel, "q", durable=False, auto_delete=True)
        elif isinstance(event, ConfirmSelected):
            for key in ("q", "nowhere", "q", "q"):
                self.tags.append((event.channel, protocol.publish(event.channel, "", key, NONE, b"x" * 5)))
        elif isinstance(event, QueueDeclared):
            protocol.consume(event.channel, "q", "c")
        elif isinstance(event, Delivery):
            protocol.ack(event)

    def finish(self) -> tuple[list[Any], bool]:
        closed = self.protocol.closed
        list(frames(self.protocol.take_output().removeprefix(GREETING)))  # whatever it got, it speaks in frames
        self.events += self.protocol.lost("the end of the input")
        ended = [(event.channel, event.tag) for event in self.events if isinstance(event, Outcome)]
        assert sorted(ended) == sorted(self.tags)
        assert [isinstance(event, ConnectionClosed) for event in self.events].index(True) == len(self.events) - 1
        return seen(self.events), closed


def check(data: bytes, places: list[int]) -> None:
    """Nothing in `data` makes the talk ask for more that is answered in it, so it is the same for each split."""
    talks = [Talk(), Talk()]
    for talk, pieces in zip(talks, ([data], cut(data, places)), strict=True):
        for piece in (START, TUNE, OPEN_OK, method(1, "channel.open-ok", b""), method(1, "confirm.select-ok"), *pieces):
            talk.say(piece)
        assert len(talk.tags) >= 4
    assert talks[0].finish() == talks[1].finish()


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_the_stored_inputs(file):
    data = file.read_bytes()
    check(data, list(range(len(data))))
    for changed in changes(data):
        check(changed, [len(data) // 2])


def changes(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), max(1, len(data) // 60)):
        for change in (0x01, 0x80, 0xFF):
            yield data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]


def pieces_of(file: Path) -> list[bytes]:
    data, at, pieces = file.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        pieces.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return pieces


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_what_a_broker_said(file):
    pieces = pieces_of(file)
    expected = None
    for size in (1, 7, 1 << 20):
        talk = Talk()
        for piece in pieces:
            for at in range(0, len(piece), size):
                talk.say(piece[at : at + size])
        done, closed = talk.finish()
        assert not closed or talk.events[-1].by_broker  # type: ignore[union-attr]
        expected = expected or done
        assert done == expected
    kinds = [event.kind for event in talk.events if isinstance(event, Outcome)]
    assert kinds.count("returned") == 1 and set(kinds) <= {"ack", "returned", "in doubt"}


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_what_a_broker_said_with_octets_changed(file):
    pieces = pieces_of(file)
    for number, piece in enumerate(pieces):
        for changed in changes(piece):
            talk = Talk()
            for said in [*pieces[:number], changed, *pieces[number + 1 :]]:
                talk.say(said)
            talk.finish()


def test_there_are_stored_inputs():
    assert len(CORPUS) > 20 and RECORDED


MARKED = st.integers(0, 6).map(lambda tag: b"\x20\0\0\0\0\x16\x0cx-mqcore-tagl" + tag.to_bytes(8, "big"))
NUMBERS = st.integers(0, 6)
CHANNELS = st.sampled_from([1, 1, 1, 1, 2, 0, 3, 65_535])
FRAMES = st.one_of(
    st.builds(deliver, CHANNELS, NUMBERS, st.binary(max_size=20), piece=st.integers(1, 9)),
    st.builds(deliver, CHANNELS, st.integers(1, 1 << 40), st.just(b"x" * 5001), piece=st.just(4088)),
    st.builds(returned, CHANNELS, MARKED | st.just(NONE) | st.binary(max_size=30)),
    st.builds(lambda channel, tag, many: method(channel, "basic.ack", tag, many), CHANNELS, NUMBERS, st.booleans()),
    st.builds(lambda channel, tag, many: method(channel, "basic.nack", tag, many, False), CHANNELS, NUMBERS, st.booleans()),
    st.builds(lambda channel: method(channel, "basic.get-ok", 9, False, "", "", 0) + content(channel, b"x"), CHANNELS),
    st.builds(lambda channel: method(channel, "channel.close", 406, "no", 60, 80), CHANNELS),
    st.builds(lambda channel: method(channel, "basic.cancel", "c", True), CHANNELS),
    st.builds(lambda channel: method(channel, "queue.declare-ok", "q", 1, 1), CHANNELS),
    st.builds(content, CHANNELS, st.binary(max_size=9)),
    st.builds(frame, st.sampled_from([1, 2, 3, 8, 9]), CHANNELS, st.binary(max_size=30)),
    st.just(method(0, "connection.blocked", "why")),
    st.just(method(0, "connection.close", 320, "bye", 0, 0)),
    st.just(frame(8, 0, b"")),
    st.binary(max_size=20),
)


@settings(max_examples=examples(1500), deadline=None)
@given(st.lists(FRAMES, max_size=12).map(b"".join), st.lists(st.integers(0, 400), max_size=6), st.data())
def test_made_up_inputs(data, places, draw):
    if data and draw.draw(st.booleans()):
        at, octet = draw.draw(st.integers(0, len(data) - 1)), draw.draw(st.integers(0, 255))
        data = data[:at] + bytes([octet]) + data[at + 1 :]
    check(data, places)


@settings(max_examples=examples(500), deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_any_octets_from_the_beginning(data, after_start):
    protocol = ClientProtocol(ClientOptions(user="a"))
    events = protocol.receive((START if after_start else b"") + data)
    assert all(isinstance(event, ConnectionClosed) for event in events) and len(events) <= 1
    assert published(protocol.take_output().removeprefix(GREETING)) == []
