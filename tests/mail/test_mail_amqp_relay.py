"""From one queue to another, mails as they are: the short way that they take, and where it must be left."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Any

import pytest
from amqp_broker import Content, Item, QueueBroker, serving
from amqp_reading import Running, disconnect, number_of, reading
from amqp_tools import method
from smtp_tools import ListSink, run
from waiting import until

from mqcore.amqp._properties import decode_properties
from mqcore.amqp.client import Properties, encode_properties
from mqcore.mail.amqp._ids import Done, Ids
from mqcore.mail.amqp.publisher import Publisher
from mqcore.mail.amqp.sink import AmqpSink

HEADERS = {"envelope": "a@example.org", "recipient": "b@example.org"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.delays", lambda: iter(lambda: 0.001, None))
    monkeypatch.setattr("mqcore.mail.amqp.declare.NEWBORN", 0.0)
    monkeypatch.setattr("mqcore.mail.amqp.publisher.FIRST_PAUSE", 0.001)


def raw(number: int, **properties: Any) -> Item:
    fields = {"content_type": "message/rfc822", "message_id": f"m{number}", "headers": HEADERS} | properties
    return Item(b"Subject: %d\n\nhello\n" % number, encode_properties(Properties(**fields)))


class Slow(QueueBroker):
    """It says nothing of what is published until it is told to."""

    channel = 0

    def __init__(self) -> None:
        super().__init__()
        self.outcome = lambda number: None

    def settle(self, channel: int, content: Content, writer: asyncio.StreamWriter) -> None:
        self.channel = channel
        super().settle(channel, content, writer)

    def confirm(self, tag: int, *, multiple: bool = False) -> bytes:
        return method(self.channel, "basic.ack", tag, multiple)

    @property
    def numbers(self) -> list[int]:
        """Of what was published."""
        return [number_of(body) for _, body in self.sent]


@contextlib.asynccontextmanager
async def relaying(broker: QueueBroker, other: QueueBroker, hook: Any = None, **options: Any) -> AsyncIterator[Running]:
    async with serving(other):
        sink = AmqpSink(f"//guest:secret@127.0.0.1:{other.port}/?queue=out&format=mime")
        async with reading(broker, hook, sink=sink, **options) as it:
            yield it


def acked(broker: QueueBroker) -> list[int]:
    return [number_of(body) for body in broker.acked]


def test_ids_are_those_of_hashlib():
    for queue, message_id in (("q", "m"), ("", "x"), ("\u00fc" * 200, "\u20ac" * 85), ("q", "\udcff")):
        ids = Ids(queue)
        for size in [*range(300), 1024, 50_000]:
            body = random.Random(size).randbytes(size)
            whole = b""
            for text in (queue, message_id):
                octets = text.encode(errors="surrogateescape")
                whole += len(octets).to_bytes(4, "big") + octets
            assert ids.id(message_id, body) == blake2b(whole + body, digest_size=16).hexdigest(), size
        assert Ids(queue, of_bodies=False).id(message_id, b"any") == blake2b(whole, digest_size=16).hexdigest()


def test_what_is_done_with_is_known_by_id_and_body():
    done = Done(100, of_bodies=False)
    done.add("a", b"1" * 40)
    assert done.has("a", b"1" * 40) and not done.has("a", b"2" * 40) and not done.has("b", b"1" * 40)
    done.add("a", b"2" * 40)
    assert done.has("a", b"2" * 40) and not done.has("a", b"1" * 40), "of two with one id, the later counts"
    done.add("b", b"3" * 40)
    done.add("c", b"4" * 40)
    assert len(done) == 2 and not done.has("a", b"2" * 40), "the oldest is let go, so that it stays small"
    done.add("d", b"5" * 1000)
    assert len(done) == 1 and done.has("d", b"5" * 1000), "and the last is kept, however large"
    done.add("e", b"")
    assert len(done) == 1 and done.has("e", b"")


def test_what_is_done_with_is_known_as_often_as_it_is_asked_for():
    """Also while more and more is done, and of few ids."""
    choose = random.Random(5)
    done = Done(200_000, of_bodies=False)
    added: list[tuple[str, bytes]] = []
    for _ in range(40_000):
        id, body = str(choose.randrange(30_000)), b"x" * choose.randrange(100)
        done.add(id, body)
        added.append((id, body))
        if choose.random() < 0.002:
            kept = dict(added[-len(done) :])
            asked = [id, *map(str, range(0, 30_000, 101))]
            assert [done.has(id, kept.get(id, b"")) for id in asked] == [id in kept for id in asked]
            assert not done.has(id, body + b"x")
    assert 2_000 < len(done) <= 10_000


def test_where_ids_are_of_bodies_none_is_kept():
    done = Done(100, of_bodies=True)
    for number in range(10_001):
        done.add(str(number), b"x" * 1000)
    assert len(done) == 10_000 and done.has("10000", b"") and not done.has("0", b"x" * 1000)


@run
async def test_confirms_out_of_order_and_for_many():
    """Each is acknowledged when its own copy is confirmed, and no other."""
    broker, other = QueueBroker(), Slow()
    broker.put("q", *map(raw, range(8)))
    async with relaying(broker, other) as it:
        await it.until(lambda: len(other.sent) == 8)
        assert not broker.settled
        other.say(other.confirm(6) + other.confirm(3))
        await it.settled(2)
        assert sorted(acked(broker)) == sorted(other.numbers[at - 1] for at in (3, 6))
        other.say(other.confirm(5, multiple=True))
        await it.settled(6)
        assert sorted(acked(broker)) == sorted(other.numbers[:6])
        other.say(other.confirm(0, multiple=True))
        await it.settled(8)
    assert it.counts.continued == 8 and sorted(acked(broker)) == [*range(8)]
    assert it.report.counts.in_doubt == 0


@run
async def test_more_on_the_way_than_there_was_room_for_at_first():
    broker, other = QueueBroker(), Slow()
    broker.put("q", *map(raw, range(700)))
    async with relaying(broker, other) as it:
        await it.until(lambda: len(other.sent) == 700)
        assert it.gateway.sink.figures()["amqp_out"]["unconfirmed"] == 700
        other.say(other.confirm(300) + other.confirm(699, multiple=True))
        await it.settled(699)
        assert sorted(acked(broker)) == sorted(other.numbers[:699])
        other.say(other.confirm(700))
        await it.settled(700)
        assert it.gateway.sink.figures()["amqp_out"] | {"connections": 1} == {
            "connections": 1, "reconnects": 0, "confirms": {"ack": 700}, "unconfirmed": 0, "blocked": False,
        }  # fmt: skip


@run
async def test_a_nack_in_the_middle():
    broker, other = QueueBroker(), QueueBroker()
    other.outcome = lambda number: "nack" if number == 3 else "ack"
    broker.put("q", *map(raw, range(5)))
    async with relaying(broker, other) as it:
        await it.settled(5)
    assert sorted(map(number_of, other.bodies("out"))) == [*range(5)]
    assert it.counts.nacked == 1 and it.counts.continued == 5 and len(other.sent) == 6
    assert it.gateway.sink.figures()["amqp_out"]["confirms"] == {"ack": 5, "nack": 1}
    assert acked(broker)[-1] == number_of(other.sent[2][1]), "it is acknowledged when the second try is confirmed"


@run
async def test_what_comes_back_ends_the_run():
    broker, other = QueueBroker(), QueueBroker()
    other.outcome = lambda number: "returned" if number == 2 else "ack"
    broker.put("q", *map(raw, range(3)))
    async with relaying(broker, other, fails=True) as it:
        await until(lambda: it.gateway.report.error is not None)
    assert len(acked(broker)) == 2 and it.counts.returned == 1 and it.counts.unfinished == 1
    assert "its messages go to no queue (312 NO_ROUTE)" in it.report.error


@run
async def test_the_connection_breaks_between_publish_and_confirm():
    """What the broker may have is published again, with the same id."""
    broker, other = QueueBroker(), Slow()
    broker.put("q", *map(raw, range(4)))
    async with relaying(broker, other) as it:
        await it.until(lambda: len(other.sent) == 4)
        other.say(other.confirm(2))
        await it.settled(1)
        disconnect(other)
        await it.until(lambda: len(other.sent) == 7)
        assert len(broker.settled) == 1
        other.say(other.confirm(3, multiple=True))
        await it.settled(4)
    assert it.counts.in_doubt == 3 and it.counts.continued == 4
    ids = [decode_properties(properties).message_id for properties, _ in other.sent]
    assert sorted(ids[4:]) == sorted(ids[:1] + ids[2:4])


@run
async def test_the_channel_is_closed_in_the_same_breath_as_a_confirm():
    """Which lets another mail begin, that is published when there is a channel again."""
    broker, other = QueueBroker(), Slow()
    async with relaying(broker, other, max_in_flight=2) as it:
        await it.until(lambda: broker.consumers)
        it.gateway.max_in_flight = 1
        broker.put("q", raw(1), raw(2))
        await it.until(lambda: len(other.sent) == 1 and broker.delivered == 2)
        await asyncio.sleep(0.01)
        other.say(other.confirm(1) + method(other.channel, "channel.close", 406, "PRECONDITION_FAILED", 60, 40))
        await it.until(lambda: len(other.sent) == 2)
        other.say(other.confirm(1))
        await it.settled(2)
    assert it.counts.continued == 2 and it.counts.failed == it.counts.retried == 0


@run
async def test_one_is_held_between_two_that_go_through():
    broker, other = QueueBroker(), QueueBroker()
    held: list[tuple[Any, Any]] = []

    def hook(context, mail):
        if number_of(mail.mime) == 1:
            held.append((context, mail))
            return True
        return False

    broker.put("q", *map(raw, range(3)))
    async with relaying(broker, other, hook) as it:
        await it.settled(2)
        assert sorted(acked(broker)) == [0, 2] and it.gateway.in_flight == 1
        held[0][0].continue_(held[0][1])
        await it.settled(3)
    assert sorted(map(number_of, other.bodies("out"))) == [0, 1, 2]


@run
async def test_one_fails_in_a_plugin():
    broker, other = QueueBroker(), QueueBroker()

    def hook(context, mail):
        if number_of(mail.mime) == 1:
            raise ValueError("a bug")

    broker.put("q", *map(raw, range(3)))
    async with relaying(broker, other, hook) as it:
        await it.settled(3)
    assert sorted(map(number_of, other.bodies("out"))) == [0, 2]
    assert [number_of(body) for body in broker.bodies("q.retry.60")] == [1] and it.counts.retried == 1


@run
async def test_tags_that_are_huge():
    broker, other = QueueBroker(), QueueBroker()
    async with relaying(broker, other) as it:
        await it.until(lambda: broker.consumers)
        (consuming,) = broker.consumers.values()
        consuming.tag = (1 << 63) - 3
        broker.put("q", *map(raw, range(6)))
        await it.settled(6)
    assert sorted(acked(broker)) == [*range(6)]


@run
async def test_what_was_done_with_is_known_when_it_comes_again():
    """Its ack did not get through; nor does a stranger's copy pass for it."""
    broker, other = QueueBroker(), Slow()
    broker.put("q", *map(raw, range(3)))
    async with relaying(broker, other) as it:
        await it.until(lambda: len(other.sent) == 3)
        answer, broker.answers["connection.open"] = broker.answers["connection.open"], None  # so that nothing comes again yet
        disconnect(broker)
        await it.until(lambda: not it.gateway.source.figures()["amqp_in"]["connections"])
        other.say(other.confirm(3, multiple=True))
        await it.until(lambda: it.counts.continued == 3)
        broker.answers["connection.open"] = answer
        disconnect(broker)
        await it.settled(3)
        assert len(other.sent) == 3
        broker.put("q", raw(1))
        await it.until(lambda: len(other.sent) == 4)
        other.say(other.confirm(4))
        await it.settled(4)
    assert it.counts.present == it.counts.redelivered == it.counts.in_doubt == 3
    assert it.counts.continued == 4, "what is not said to come again is a new one"


@run
async def test_two_messages_that_call_themselves_the_same():
    """One is done with, and both come again."""
    broker, other = QueueBroker(), Slow()
    broker.put("q", raw(1), Item(b"Subject: 2\n\nhello\n", raw(1).properties))
    async with relaying(broker, other) as it:
        await it.until(lambda: len(other.sent) == 2)
        answer, broker.answers["connection.open"] = broker.answers["connection.open"], None
        disconnect(broker)
        await it.until(lambda: not it.gateway.source.figures()["amqp_in"]["connections"])
        other.say(other.confirm(1))
        await it.until(lambda: it.counts.continued == 1)
        broker.answers["connection.open"] = answer
        disconnect(broker)
        await it.until(lambda: len(other.sent) == 3)
        other.say(other.confirm(3, multiple=True))
        await it.settled(2)
        ids = [decode_properties(properties).message_id for properties, _ in other.sent]
    assert other.numbers[0] != other.numbers[1] == other.numbers[2] and it.counts.present == 1
    assert len(set(ids)) == 1, "the id of a message is the same whenever it comes"


@pytest.mark.parametrize("mixed", [False, True])
@run
async def test_where_mails_are_kept_by_their_ids_these_are_of_bodies(mixed):
    """In a mailbox, or where what fails goes to one."""
    broker, other = QueueBroker(), QueueBroker()
    broker.put("q", raw(1), Item(b"Subject: 2\n\nhello\n", raw(1).properties))
    ids: list[str] = []

    def hook(context: Any, mail: Any) -> None:
        ids.append(mail.origin.id)
        mail.reject(550, "no")

    async with serving(other):
        sink = AmqpSink(f"//guest:secret@127.0.0.1:{other.port}/?queue=out&format=mime") if mixed else None
        async with reading(broker, hook, sink=sink, mixed=mixed) as it:
            await it.settled(2)
    assert ids == [Ids("q").id("m1", b"Subject: %d\n\nhello\n" % number) for number in (1, 2)]


LARGE = (8191, 8192, 50_000, 131_064, 131_065, 1_000_000)
"""Octets: bodies that are copied, that are sent from where they are, and that need several frames."""


@run
async def test_large_bodies_go_on_as_they_came(monkeypatch):
    """And none has to wait for others to be sent, as in a task."""
    begun: list[Any] = []
    monkeypatch.setattr(Publisher, "deliver", lambda self, mails, first=None: begun.append(mails))
    broker, other = QueueBroker(), QueueBroker()
    items = [
        Item((b"Subject: %d\n\n" % number).ljust(size, b"%d" % (number % 10)), raw(number).properties)
        for number, size in enumerate(LARGE * 5)
    ]
    bodies = sorted(item.body for item in items)
    broker.put("q", *items)
    async with relaying(broker, other) as it:
        await it.settled(len(items))
    assert sorted(body for _, body in other.sent) == sorted(broker.acked) == bodies and not begun


# What is said of a mail


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({}, {}),
        (HEADERS, HEADERS),
        ({"x-own": "1", "X-Own": True, "x-number": 7, "x-long": 1 << 40, **HEADERS}, HEADERS),
        ({"x-list": [1], **HEADERS}, HEADERS),
        ({"name": "\u00fc", "number": 3, "list": ["a", 1], "none": None, "table": {"a": "b"}},) * 2,
        ({"recipients": ["a@b", "c@d"], "envelope": ""},) * 2,
        ({"text": "two\r\nlines", **HEADERS},) * 2,
        ({f"name{number}": str(number) for number in range(40)},) * 2,
        ({"x": "", "-": "y", "": "z"},) * 2,
        ({"priority": 3},) * 2,
        ({"long": "x" * 5000},) * 2,
    ],
)
@run
async def test_what_is_known_goes_on_as_it_came(headers, known):
    broker, other = QueueBroker(), QueueBroker()
    seen: list[dict[str, Any]] = []
    broker.put("q", raw(1, headers=headers, timestamp=1_700_000_000))
    async with relaying(broker, other, lambda context, mail: seen.append(dict(mail.json))) as it:
        await it.settled(1)
    assert seen == [known]
    properties = decode_properties(other.sent[0][0])
    assert properties.headers == {**{name: value for name, value in known.items() if value is not None}, "x-mqcore-attempt": 1}
    assert (properties.content_type, properties.delivery_mode, properties.app_id) == ("message/rfc822", 2, "mqcore")
    assert properties.message_id == Ids("q", of_bodies=False).id("m1", b"") and properties.timestamp >= 1_700_000_000
    assert properties.priority == known.get("priority")


@pytest.mark.parametrize(
    "headers",
    [{"envelope": "a\r\nb"}, {"recipient": "a\nb"}, {"recipient": 3}, {"recipients": "a@b"}, {"recipients": ["a\nb"]}],
)
@run
async def test_addresses_that_are_none(headers):
    broker, other = QueueBroker(), QueueBroker()
    broker.put("q", raw(1, headers=headers))
    async with relaying(broker, other) as it:
        await it.settled(1)
    assert not other.sent and it.counts.rejected == 1 and len(broker.bodies("q.failed")) == 1


def pieces() -> list[bytes]:
    """Properties of which something is missing, or too much is there."""
    whole = encode_properties(
        Properties(
            content_type="message/rfc822", headers={**HEADERS, "x-a": 1}, delivery_mode=2, priority=1, correlation_id="c",
            message_id="m", timestamp=1, type="t", app_id="a",
        )
    )  # fmt: skip
    cut = [whole[:size] for size in range(len(whole))]
    return [*cut, whole + b"x", whole[:2] + b"\xff" + whole[3:], whole[:17] + b"\xff\xff\xff\xff" + whole[21:]]


@run
async def test_properties_that_are_none():
    """Whatever they are: nothing is read behind their end, and each message is somewhere in the end."""
    broken = pieces()
    broker, sink = QueueBroker(), ListSink()
    broker.put("q", *(Item(b"Subject: %d\n\n" % number, properties) for number, properties in enumerate(broken)))
    async with reading(broker, sink=sink) as it:
        await it.settled(len(broken))
    assert it.counts.rejected == len(broken) and not sink.mails
