"""The protocol of AMQP against RabbitMQ, with pika as an independent peer on the same queues."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mqcore.amqp.client import (
    Blocked,
    ChannelClosed,
    ChannelOpened,
    ClientOptions,
    ClientProtocol,
    ConfirmSelected,
    ConnectionClosed,
    ConnectionOpened,
    ConsumeCancelled,
    ConsumeStarted,
    Delivery,
    ExchangeDeclared,
    GetEmpty,
    Outcome,
    Properties,
    QosSet,
    QueueDeclared,
    QueueDeleted,
    QueuePurged,
    SecretUpdated,
    Unblocked,
    encode_properties,
)

pika = pytest.importorskip("pika", reason="pika is not installed (pip: pika)")

TIMEOUT = 60
PERSISTENT = encode_properties(Properties(delivery_mode=2))


class Peer:
    """Our protocol on a socket that blocks."""

    def __init__(self, broker: Any, **options: Any) -> None:
        self.socket = socket.create_connection(("127.0.0.1", broker.port), TIMEOUT)
        self.protocol = ClientProtocol(ClientOptions(**{"user": "guest", "password": "guest", "heartbeat": 0, **options}))
        self.events: list[Any] = []

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self) -> None:
        self.socket.sendall(self.protocol.take_output())
        data = self.socket.recv(1 << 18)
        self.events += self.protocol.receive(data) if data else self.protocol.lost("closed")

    def until(self, is_it: Callable[[Any], bool] | type) -> Any:
        """Read until such an event is there, and take it out."""
        matches = (lambda event: isinstance(event, is_it)) if isinstance(is_it, type) else is_it
        give_up = time.monotonic() + TIMEOUT
        while True:
            for at, event in enumerate(self.events):
                if matches(event):
                    return self.events.pop(at)
            assert time.monotonic() < give_up and not self.protocol.closed, self.events
            self.read()

    def take(self, kind: type, count: int) -> list[Any]:
        return [self.until(kind) for _ in range(count)]

    def channel(self, *, confirms: bool = False) -> int:
        if not self.protocol.is_open:
            self.until(ConnectionOpened)
        channel = self.protocol.open_channel()
        self.until(ChannelOpened)
        if confirms:
            self.protocol.select_confirm(channel)
            self.until(ConfirmSelected)
        return channel


@pytest.fixture
def peer(broker) -> Iterator[Peer]:
    with Peer(broker) as peer:
        yield peer


@pytest.fixture
def queue(broker) -> Iterator[str]:
    """A classic queue of its own, empty; gone in the end, if it is there."""
    name = f"test-{uuid.uuid4()}"
    with pika_channel(broker) as channel:
        channel.queue_declare(name, durable=True)
        yield name
        channel.queue_delete(name)


@contextlib.contextmanager
def pika_channel(broker) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    try:
        yield connection.channel()
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()


HEADERS = {"text": "é", "number": 7, "large": 1 << 40, "yes": True, "none": None, "table": {"list": [1, "a", {"b": False}]}}


def test_what_we_publish_pika_gets(broker, peer, queue):
    channel = peer.channel(confirms=True)
    properties = Properties(
        content_type="application/json", content_encoding="gzip", headers=HEADERS, delivery_mode=2, priority=3,
        correlation_id="c", reply_to="r", message_id="m", timestamp=1_700_000_000, type="t", app_id="a",
    )  # fmt: skip
    bodies = [b"", b"x", b"\xff\0\xce" * 10, bytes(range(256)) * 2000]
    for body in bodies:
        peer.protocol.publish(channel, "", queue, encode_properties(properties), body)
    assert [outcome.kind for outcome in peer.take(Outcome, len(bodies))] == ["ack"] * len(bodies)
    with pika_channel(broker) as other:
        for body in bodies:
            _, got, content = other.basic_get(queue, auto_ack=True)
            assert content == body
            assert got.headers.pop("x-mqcore-tag") > 0 and got.headers == HEADERS
            for name in (
                "content_type",
                "content_encoding",
                "delivery_mode",
                "priority",
                "correlation_id",
                "message_id",
                "timestamp",
            ):
                assert getattr(got, name) == getattr(properties, name)
            assert (got.reply_to, got.type, got.app_id) == ("r", "t", "a")


def test_what_pika_publishes_we_get(broker, peer, queue):
    bodies = [b"", b"x", bytes(range(256)) * 2000]
    with pika_channel(broker) as other:
        for body in bodies:
            other.basic_publish("", queue, body, pika.BasicProperties(headers=HEADERS, message_id="m", delivery_mode=2))
    channel = peer.channel()
    peer.protocol.set_qos(channel, 10)
    peer.until(QosSet)
    peer.protocol.consume(channel, queue)
    deliveries = peer.take(Delivery, len(bodies))
    assert [delivery.body for delivery in deliveries] == bodies
    for delivery in deliveries:
        assert delivery.properties() == Properties(headers=HEADERS, message_id="m", delivery_mode=2)
        assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", queue, False)


def test_deliveries_in_any_order_are_settled(broker, peer, queue):
    """In turns of all kinds; what the broker would refuse closes the channel."""
    with pika_channel(broker) as other:
        for number in range(300):
            other.basic_publish("", queue, b"%d" % number)
    channel = peer.channel()
    peer.protocol.consume(channel, queue)
    deliveries = peer.take(Delivery, 300)
    back = []
    for turn in range(30):
        order = deliveries[10 * turn : 10 * turn + 10][:: -1 if turn % 2 else 1]
        for at, delivery in enumerate(order):
            if turn % 3 == 0 and at % 4 == 1:
                back.append(int(delivery.body))
            elif turn % 5 == 2 and at == 7:
                assert peer.protocol.reject(delivery, requeue=False)
            else:
                assert peer.protocol.ack(delivery)
        peer.socket.sendall(peer.protocol.take_output())
    assert peer.protocol.unsettled(channel) == len(back)
    peer.protocol.close_channel(channel)
    assert peer.until(ChannelClosed).code == 200
    with pika_channel(broker) as other:
        got = [other.basic_get(queue, auto_ack=True) for _ in back]
        assert [int(body) for _, _, body in got] == sorted(back) and all(method.redelivered for method, _, _ in got)
        assert other.basic_get(queue)[0] is None


def test_of_many_on_the_way_those_come_back_that_go_nowhere(broker, peer, queue):
    """Confirms of stored messages come between a return and the confirm of what came back."""
    channel = peer.channel(confirms=True)
    nowhere = set()
    for number in range(3000):
        key = queue if number % 7 else "nowhere"
        tag = peer.protocol.publish(channel, "", key, PERSISTENT, b"x")
        if key == "nowhere":
            nowhere.add(tag)
    outcomes = {outcome.tag: outcome for outcome in peer.take(Outcome, 3000)}
    assert {tag for tag, outcome in outcomes.items() if outcome.kind == "returned"} == nowhere
    assert {outcome.kind for outcome in outcomes.values()} == {"ack", "returned"}
    assert {(outcomes[tag].code, outcomes[tag].text) for tag in nowhere} == {(312, "NO_ROUTE")}
    peer.protocol.purge_queue(channel, queue)
    assert peer.until(QueuePurged).messages == 3000 - len(nowhere)


def test_nack(broker, peer):
    """A classic queue that is full."""
    channel = peer.channel(confirms=True)
    peer.protocol.declare_queue(
        channel, "", durable=False, exclusive=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"}
    )
    queue = peer.until(QueueDeclared).queue
    for _ in range(5):
        peer.protocol.publish(channel, "", queue, PERSISTENT, b"x")
    outcomes = {outcome.tag: outcome.kind for outcome in peer.take(Outcome, 5)}
    assert outcomes == {1: "ack", 2: "ack", 3: "nack", 4: "nack", 5: "nack"}


def test_requests(broker, peer, queue):
    channel = peer.channel()
    protocol = peer.protocol
    protocol.declare_queue(channel, queue, passive=True)
    assert peer.until(QueueDeclared) == (channel, queue, 0, 0)
    protocol.check_exchange(channel, "amq.direct")
    peer.until(ExchangeDeclared)
    protocol.get(channel, queue)
    peer.until(GetEmpty)
    with pika_channel(broker) as other:
        other.basic_publish("", queue, b"x")
    protocol.get(channel, queue)
    delivery = peer.until(Delivery)
    assert delivery.consumer_tag is None and protocol.ack(delivery)
    protocol.consume(channel, queue, "mine")
    peer.until(ConsumeStarted)  # 3.10 fails with 541 if the next one comes before
    protocol.cancel(channel, "mine")
    assert peer.until(ConsumeCancelled) == (channel, "mine", False)
    protocol.update_secret("guest", "why not")
    peer.until(SecretUpdated)
    protocol.delete_queue(channel, queue)
    assert peer.until(QueueDeleted).messages == 0
    protocol.close()
    assert peer.until(ConnectionClosed) == (200, "closed", "", False)


def test_a_queue_that_is_deleted_cancels_its_consumer(broker, peer, queue):
    channel = peer.channel()
    peer.protocol.consume(channel, queue, "mine")
    peer.read()
    with pika_channel(broker) as other:
        other.queue_delete(queue)
    assert peer.until(ConsumeCancelled) == (channel, "mine", True)


def test_what_the_broker_refuses(broker, peer, queue):
    channel = peer.channel(confirms=True)
    peer.protocol.declare_queue(channel, "no-such-queue", passive=True)
    event = peer.until(ChannelClosed)
    assert (event.code, event.method, event.by_broker) == (404, "queue.declare", True)
    assert event.text == "NOT_FOUND - no queue 'no-such-queue' in vhost '/'"
    channel = peer.channel()
    peer.protocol.declare_queue(channel, queue, arguments={"x-queue-type": "quorum"})
    event = peer.until(ChannelClosed)
    assert event.code == 406 and "inequivalent arg 'x-queue-type'" in event.text
    channel = peer.channel(confirms=True)
    peer.protocol.publish(channel, "no-such-exchange", "q", PERSISTENT, b"x")
    assert peer.until(Outcome).kind == "in doubt"
    assert peer.until(ChannelClosed).method == "basic.publish"
    assert peer.channel() > channel


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"password": "wrong"}, 403, "ACCESS_REFUSED"),
        ({"vhost": "no"}, 530, "NOT_ALLOWED - vhost no not found"),
        ({"user": ""}, 530, "the broker offers no login by EXTERNAL, but"),
    ],
)
def test_logins_that_are_refused(broker, options, code, text):
    with Peer(broker, **options) as peer:
        event = peer.until(ConnectionClosed)
        assert event.code == code and event.text.startswith(text) and event.by_broker == (options != {"user": ""})


@pytest.mark.parametrize("frame_max", [4096, 100_000])
def test_frames_are_as_agreed(broker, queue, frame_max):
    with Peer(broker, frame_max=frame_max) as peer:
        channel = peer.channel(confirms=True)
        body = bytes(range(256)) * 1000
        peer.protocol.publish(channel, "", queue, PERSISTENT, body)
        assert peer.until(Outcome).kind == "ack"
        peer.protocol.get(channel, queue)
        assert peer.until(Delivery).body == body


def test_a_fault_of_ours_is_told_with_the_brokers_words(broker, peer):
    peer.channel()
    peer.socket.sendall(peer.protocol.take_output() + struct.pack(">BHI", 1, 1, 4) + b"\0\x3c\0\x14\0")  # no end of a frame
    event = peer.until(ConnectionClosed)
    assert event.by_broker and event.code == 501 and event.text.startswith("FRAME_ERROR")


def test_alarm(broker, peer, queue):
    """A connection that has published is told, and is not read, until the alarm is over."""
    channel = peer.channel(confirms=True)
    peer.protocol.publish(channel, "", queue, PERSISTENT, b"x")
    assert peer.until(Outcome).kind == "ack"
    broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        peer.protocol.publish(channel, "", queue, PERSISTENT, b"x")
        assert "memory" in peer.until(Blocked).reason
    finally:
        broker.control("set_vm_memory_high_watermark", "0.4")
    peer.until(Unblocked)
    assert peer.until(Outcome).kind == "ack"
