"""The client's side of AMQP, against frames as a broker sends them."""

from __future__ import annotations

import gc
import struct
from typing import Any

import pytest
from amqp_tools import (
    GREETING,
    NONE,
    OPEN_OK,
    START,
    TUNE,
    connected,
    content,
    deliver,
    frame,
    frames,
    method,
    published,
    returned,
    said,
    seen,
    with_channel,
)

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
    Flow,
    GetEmpty,
    Outcome,
    Properties,
    QosSet,
    QueueDeclared,
    QueueDeleted,
    QueuePurged,
    SecretUpdated,
    StateError,
    Unblocked,
    encode_properties,
)

SERVER = {"product": "RabbitMQ", "version": "3.10.8"}
BACK = method(0, "connection.close", 320, "CONNECTION_FORCED - broker is shutting down", 0, 0)


# Connecting


def test_how_a_connection_begins():
    protocol = ClientProtocol(ClientOptions(user="me", password="secret", vhost="mail", properties={"connection_name": "w1"}))
    assert protocol.take_output() == GREETING and protocol.take_output() == b""
    assert protocol.receive(START) == []
    [(channel, name, (client, mechanism, response, locale))] = said(protocol)
    assert (channel, name, mechanism, response, locale) == (0, "connection.start-ok", "PLAIN", b"\0me\0secret", "en_US")
    assert client["connection_name"] == "w1" and client["capabilities"]["publisher_confirms"]
    assert protocol.receive(TUNE) == []
    assert said(protocol) == [(0, "connection.tune-ok", [2047, 131072, 60]), (0, "connection.open", ["mail", "", False])]
    assert not protocol.is_open
    assert protocol.receive(OPEN_OK) == [ConnectionOpened(SERVER, 2047, 131072, 60)]
    assert protocol.is_open and not protocol.closed and protocol.take_output() == b""


def test_login_by_a_certificate():
    protocol = ClientProtocol(ClientOptions())
    protocol.receive(method(0, "connection.start", 0, 9, {}, b"PLAIN EXTERNAL", b"en_US"))
    assert protocol.take_output().count(b"\x08EXTERNAL\0\0\0\0\x05en_US") == 1


@pytest.mark.parametrize(
    ("theirs", "agreed"),
    [((0, 0, 0), (100, 50_000, 20)), ((9, 4096, 10), (9, 4096, 10)), ((65_535, 1 << 31, 600), (100, 50_000, 20))],
)
def test_what_both_want_less_of(theirs, agreed):
    protocol = ClientProtocol(ClientOptions(user="a", channel_max=100, frame_max=50_000, heartbeat=20))
    protocol.receive(START + method(0, "connection.tune", *theirs))
    assert said(protocol)[-2] == (0, "connection.tune-ok", list(agreed))


def test_no_heartbeat():
    protocol = ClientProtocol(ClientOptions(user="a", heartbeat=0))
    protocol.receive(START + TUNE)
    assert said(protocol)[-2][2][2] == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"vhost": "x" * 256}, ValueError),
        ({"properties": {"a": object()}}, TypeError),
        ({"user": "\ud800"}, ValueError),
    ],
)
def test_what_cannot_be_said_is_refused_at_once(options, error):
    with pytest.raises(error):
        ClientProtocol(ClientOptions(**options))


@pytest.mark.parametrize("name", ["channel_max", "frame_max", "heartbeat", "max_body"])
def test_limits_that_cannot_be(name):
    with pytest.raises(ValueError, match=f"{name} can be"):
        ClientOptions(**{name: -1})


def test_the_password_is_not_printed():
    assert "secret" not in repr(ClientOptions(user="a", password="secret"))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"AMQP\0\0\x09\x01", r"this is no broker of AMQP 0-9-1: the first that it says is b'AMQP"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"no broker of AMQP 0-9-1: the first that it says is b'HTTP/1\.'"),
        (b"\x15\x03\x03\0\x02\x02\x28", "this port speaks TLS"),
        (method(0, "connection.start", 1, 0, {}, b"PLAIN", b"en_US"), "speaks AMQP 1-0, not 0-9"),
        (method(0, "connection.start", 0, 9, {}, b"AMQPLAIN EXTERNAL", b""), "no login by PLAIN, but AMQPLAIN EXTERNAL"),
        (TUNE, "connection.tune where it makes no sense"),
    ],
)
def test_what_is_no_broker_for_us(answer, text):
    protocol = ClientProtocol(ClientOptions(user="a"))
    assert protocol.take_output() == GREETING
    [event] = protocol.receive(answer)
    assert isinstance(event, ConnectionClosed) and not event.by_broker and protocol.closed
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(event.text)
    assert protocol.take_output() == b"" and protocol.receive(START) == []


def test_a_login_that_is_refused():
    protocol = ClientProtocol(ClientOptions(user="a", password="secret"))
    text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."
    assert protocol.receive(START + method(0, "connection.close", 403, text, 0, 0)) == [ConnectionClosed(403, text, "", True)]
    assert said(protocol)[-1] == (0, "connection.close-ok", []) and protocol.closed


def test_a_vhost_that_is_not_there():
    protocol = ClientProtocol(ClientOptions(user="a", vhost="no"))
    close = method(0, "connection.close", 530, "NOT_ALLOWED - vhost no not found", 10, 40)
    assert protocol.receive(START + TUNE + close) == [
        ConnectionClosed(530, "NOT_ALLOWED - vhost no not found", "connection.open", True)
    ]


# Ending


def test_closing():
    protocol = with_channel(confirms=True)
    protocol.publish(1, "", "q", NONE, b"x")
    protocol.take_output()
    protocol.close()
    assert said(protocol) == [(0, "connection.close", [200, "", 0, 0])]
    assert not protocol.closed and not protocol.is_open
    assert seen(protocol.receive(method(1, "basic.ack", 1, False))) == [("outcome", 1, 1, "ack", 0, "")]
    assert protocol.receive(method(0, "connection.close-ok")) == [ConnectionClosed(200, "closed", "", False)]
    assert protocol.closed and protocol.take_output() == b""
    protocol.close()
    assert protocol.take_output() == b"" and protocol.lost("gone") == []


def test_closing_before_anything_was_said():
    protocol = ClientProtocol(ClientOptions(user="a"))
    protocol.close()
    assert protocol.closed and protocol.lost("") == [ConnectionClosed(200, "closed", "", False)]


def test_the_broker_closes():
    protocol = with_channel()
    assert protocol.receive(BACK) == [ConnectionClosed(320, "CONNECTION_FORCED - broker is shutting down", "", True)]
    assert said(protocol) == [(0, "connection.close-ok", [])] and protocol.closed
    assert protocol.receive(BACK) == []


def test_both_close():
    protocol = connected()
    protocol.close()
    assert [event.code for event in protocol.receive(BACK)] == [320]
    assert [name for _, name, _ in said(protocol)] == ["connection.close", "connection.close-ok"]


def test_the_connection_breaks():
    protocol = with_channel(confirms=True)
    assert [protocol.publish(1, "", "q", NONE, b"x") for _ in range(3)] == [1, 2, 3]
    data = published(protocol.take_output())
    protocol.receive(method(1, "basic.ack", 2, False) + returned(1, data[2][0]))
    assert seen(protocol.lost("the connection broke")) == [
        ("outcome", 1, 1, "in doubt", 0, ""),
        ("outcome", 1, 3, "returned", 312, "NO_ROUTE"),
        ConnectionClosed(320, "the connection broke", "", False),
    ]
    assert protocol.closed and protocol.lost("again") == []
    with pytest.raises(StateError, match="channel 1 is not open"):
        protocol.publish(1, "", "q", NONE, b"x")
    with pytest.raises(StateError, match="the connection is not open"):
        protocol.open_channel()
    with pytest.raises(StateError, match="the connection is not open"):
        protocol.update_secret("", "")


# Requests


def test_requests_and_what_comes_back():
    protocol = with_channel()
    protocol.declare_queue(1, "q", passive=True)
    protocol.declare_queue(1, "", durable=False, exclusive=True, auto_delete=True, arguments={"x-queue-type": "quorum"})
    protocol.check_exchange(1, "amq.direct")
    protocol.purge_queue(1, "q")
    protocol.delete_queue(1, "q", if_unused=True, if_empty=True)
    protocol.set_qos(1, 100)
    protocol.consume(1, "q", "c", exclusive=True, arguments={"x-priority": 1})
    protocol.cancel(1, "c")
    protocol.get(1, "q")
    protocol.select_confirm(1)
    assert said(protocol) == [
        (1, "queue.declare", [0, "q", True, True, False, False, False, {}]),
        (1, "queue.declare", [0, "", False, False, True, True, False, {"x-queue-type": "quorum"}]),
        (1, "exchange.declare", [0, "amq.direct", "", True, False, False, False, False, {}]),
        (1, "queue.purge", [0, "q", False]),
        (1, "queue.delete", [0, "q", True, True, False]),
        (1, "basic.qos", [0, 100, False]),
        (1, "basic.consume", [0, "q", "c", False, False, True, False, {"x-priority": 1}]),
        (1, "basic.cancel", ["c", False]),
        (1, "basic.get", [0, "q", False]),
        (1, "confirm.select", [False]),
    ]
    assert protocol.receive(
        method(1, "queue.declare-ok", "q", 3, 2)
        + method(1, "queue.declare-ok", "amq.gen-1", 0, 0)
        + method(1, "exchange.declare-ok")
        + method(1, "queue.purge-ok", 3)
        + method(1, "queue.delete-ok", 4)
        + method(1, "basic.qos-ok")
        + method(1, "basic.consume-ok", "c")
        + method(1, "basic.cancel-ok", "c")
        + method(1, "basic.get-empty", "")
        + method(1, "confirm.select-ok")
    ) == [
        QueueDeclared(1, "q", 3, 2),
        QueueDeclared(1, "amq.gen-1", 0, 0),
        ExchangeDeclared(1),
        QueuePurged(1, 3),
        QueueDeleted(1, 4),
        QosSet(1),
        ConsumeStarted(1, "c"),
        ConsumeCancelled(1, "c", False),
        GetEmpty(1),
        ConfirmSelected(1),
    ]


def test_channels():
    protocol = connected(channel_max=3)
    assert [protocol.open_channel() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(StateError, match="3 channels are open"):
        protocol.open_channel()
    with pytest.raises(StateError, match="channel 2 is not open"):  # the broker has not said so
        protocol.get(2, "q")
    assert protocol.receive(b"".join(method(n, "channel.open-ok", b"") for n in (1, 2, 3))) == [*map(ChannelOpened, (1, 2, 3))]
    protocol.take_output()
    protocol.close_channel(2)
    assert said(protocol) == [(2, "channel.close", [200, "", 0, 0])]
    with pytest.raises(StateError, match="channel 2 is not open"):
        protocol.close_channel(2)
    with pytest.raises(StateError):
        protocol.open_channel()
    assert protocol.receive(method(2, "channel.close-ok")) == [ChannelClosed(2, 200, "closed", "", False)]
    assert protocol.open_channel() == 2
    assert protocol.receive(method(2, "channel.open-ok", b"")) == [ChannelOpened(2)]


def test_the_broker_closes_a_channel():
    protocol = with_channel(confirms=True)
    protocol.publish(1, "", "q", NONE, b"x")
    protocol.declare_queue(1, "no", passive=True)
    protocol.take_output()
    text = "NOT_FOUND - no queue 'no' in vhost '/'"
    assert seen(protocol.receive(method(1, "channel.close", 404, text, 50, 10))) == [
        ("outcome", 1, 1, "in doubt", 0, ""),
        ChannelClosed(1, 404, text, "queue.declare", True),
    ]
    assert said(protocol) == [(1, "channel.close-ok", [])]
    assert protocol.is_open and protocol.open_channel() == 2
    with pytest.raises(StateError, match="channel 1 is not open"):
        protocol.unconfirmed(1)


def test_both_close_a_channel():
    """Its number is used again only when the broker is done with it."""
    protocol = with_channel(channel_max=1)
    protocol.close_channel(1)
    assert protocol.receive(method(1, "channel.close", 406, "no", 60, 80)) == [ChannelClosed(1, 406, "no", "basic.ack", True)]
    with pytest.raises(StateError):
        protocol.open_channel()
    assert protocol.receive(method(1, "channel.close", 406, "no", 60, 80)) == []
    assert protocol.receive(deliver(1, 1, b"late")) == []
    assert protocol.receive(method(1, "channel.close-ok")) == []
    assert protocol.open_channel() == 1


def test_what_comes_behind_the_close_of_a_channel():
    protocol = with_channel(confirms=True)
    protocol.publish(1, "", "q", NONE, b"x")
    protocol.get(1, "q")
    protocol.close_channel(1)
    late = deliver(1, 1, b"late") + method(1, "basic.get-empty", "") + method(1, "basic.cancel", "c", True)
    assert seen(protocol.receive(late + method(1, "basic.ack", 1, False))) == [("outcome", 1, 1, "ack", 0, "")]
    assert protocol.receive(method(1, "channel.close-ok")) == [ChannelClosed(1, 200, "closed", "", False)]


def test_what_the_broker_says_unasked():
    protocol = with_channel()
    assert protocol.receive(
        method(0, "connection.blocked", "low on memory")
        + method(0, "connection.unblocked")
        + frame(8, 0, b"")
        + method(1, "channel.flow", False)
        + method(1, "basic.cancel", "c", True)
        + method(1, "basic.cancel", "d", False)
    ) == [Blocked("low on memory"), Unblocked(), Flow(1, False), ConsumeCancelled(1, "c", True), ConsumeCancelled(1, "d", True)]
    assert said(protocol) == [(1, "channel.flow-ok", [False]), (1, "basic.cancel-ok", ["d"])]


def test_a_new_secret():
    protocol = connected()
    protocol.update_secret("token", "the old one ends")
    assert said(protocol) == [(0, "connection.update-secret", [b"token", "the old one ends"])]
    assert protocol.receive(method(0, "connection.update-secret-ok")) == [SecretUpdated()]


def test_heartbeats():
    protocol = connected()
    protocol.send_heartbeat()
    assert protocol.take_output() == b"\x08\0\0\0\0\0\0\xce"
    assert protocol.receive(b"\x08\0\0\0\0\0\0\xce") == []


def test_a_request_that_is_too_large():
    protocol = with_channel(frame_max=4096)
    with pytest.raises(ValueError, match="it may have 4096"):
        protocol.declare_queue(1, "q", arguments={"a": "x" * 4096})
    with pytest.raises(ValueError, match="does not fit"):
        protocol.set_qos(1, 65_536)
    assert protocol.take_output() == b""
    with pytest.raises(ValueError, match="does not fit"):
        protocol.set_qos(1, -1)


# Deliveries


def test_a_delivery():
    protocol = with_channel()
    properties = Properties(message_id="m1", headers={"x-mqcore-attempt": 2})
    [delivery] = protocol.receive(deliver(1, 1, b"hello", encode_properties(properties), redelivered=True))
    assert isinstance(delivery, Delivery)
    assert (delivery.channel, delivery.tag, delivery.redelivered, delivery.size) == (1, 1, True, 5)
    assert (delivery.consumer_tag, delivery.exchange, delivery.routing_key) == ("c", "", "q")
    assert delivery.body == b"hello" and delivery.properties() == properties
    assert repr(delivery) == "<Delivery 1 on channel 1, 5 octets>"
    assert protocol.unsettled(1) == 1


@pytest.mark.parametrize("size", [0, 1, 2, 4088, 4089, 8176, 8177, 100_000])
def test_bodies_of_any_size(size):
    protocol = with_channel(frame_max=4096)
    body = bytes(number % 251 for number in range(size))
    [delivery] = protocol.receive(deliver(1, 1, body, piece=4088))
    assert delivery.body == body


def test_messages_of_two_channels_at_once():
    protocol = with_channel()
    assert protocol.open_channel() == 2
    protocol.receive(method(2, "channel.open-ok", b""))
    one, two = [list(split(deliver(n, 1, b"%d" % n * 10, piece=5))) for n in (1, 2)]
    events = protocol.receive(b"".join(piece for pair in zip(one, two, strict=True) for piece in pair))
    assert [(event.channel, event.body) for event in events] == [(1, b"1" * 10), (2, b"2" * 10)]


def split(data: bytes) -> list[bytes]:
    return [frame(*one) for one in frames(data)]


def test_a_body_that_is_too_large_is_dropped():
    protocol = with_channel(max_body=10)
    events = protocol.receive(deliver(1, 1, b"x" * 11, piece=3) + deliver(1, 2, b"y" * 10))
    assert [(event.body, event.size) for event in events] == [(None, 11), (b"y" * 10, 10)]
    huge = method(1, "basic.deliver", "c", 3, False, "", "q") + frame(2, 1, struct.pack(">HHQ", 60, 0, (1 << 64) - 1) + NONE)
    assert protocol.receive(huge) == []  # and no memory is taken


def test_properties_that_are_none():
    """Publishers write them, and the broker hands them on: no reason to end a connection."""
    protocol = with_channel()
    [delivery] = protocol.receive(deliver(1, 1, b"", b"\x20\0\0\0\0\x05oops"))
    with pytest.raises(Exception, match="too early"):
        delivery.properties()
    assert protocol.ack(delivery)


def test_texts_that_differ_from_those_before():
    protocol = with_channel()
    for tag, key in enumerate(["q", "r", "é", "é", "\udcff", "\udcff", "", "x" * 255], 1):
        data = method(1, "basic.deliver", "c" * (tag % 3), tag, False, key, key) + content(1, b"")
        [delivery] = protocol.receive(data)
        assert (delivery.routing_key, delivery.exchange, delivery.consumer_tag) == (key, key, "c" * (tag % 3))


def test_an_answer_to_get():
    protocol = with_channel()
    protocol.get(1, "q")
    protocol.get(1, "q")
    [delivery] = protocol.receive(method(1, "basic.get-ok", 1, True, "", "q", 7) + content(1, b"a"))
    assert (delivery.consumer_tag, delivery.redelivered, delivery.body) == (None, True, b"a")
    assert protocol.receive(method(1, "basic.get-empty", "")) == [GetEmpty(1)]
    assert protocol.ack(delivery) and said(protocol)[-1] == (1, "basic.ack", [1, False])


def acks(protocol: ClientProtocol) -> list[tuple[int, bool]]:
    """Tags, and whether also what is before."""
    return [tuple(arguments) for _, name, arguments in said(protocol) if name == "basic.ack"]  # type: ignore[misc]


def delivered(protocol: ClientProtocol, *tags: int) -> dict[int, Delivery]:
    return {event.tag: event for event in protocol.receive(b"".join(deliver(1, tag, b"x") for tag in tags))}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("done", "sent"),
    [
        ([1], [(1, False)]),
        ([1, 2, 3], [(3, True)]),
        ([3, 1, 2], [(3, True)]),
        ([2], [(2, False)]),
        ([4, 2, 1], [(2, True), (4, False)]),
        ([5, 3], [(5, False), (3, False)]),
        ([5, 4, 3, 2, 1], [(5, True)]),
        ([], []),
    ],
)
def test_acks_are_gathered(done, sent):
    protocol = with_channel()
    deliveries = delivered(protocol, 1, 2, 3, 4, 5)
    assert all(protocol.ack(deliveries[tag]) for tag in done)
    assert not any(protocol.ack(deliveries[tag]) for tag in done)
    assert acks(protocol) == sent and protocol.unsettled(1) == 5 - len(done)
    assert not any(protocol.ack(deliveries[tag]) for tag in done)
    assert acks(protocol) == []


def test_an_ack_of_many_names_one_that_the_broker_waits_for():
    """It refuses the channel for an ack of a tag that was settled, also where that means all before."""
    protocol = with_channel()
    deliveries = delivered(protocol, 1, 2, 3, 5, 9)
    assert protocol.reject(deliveries[3], requeue=False) and protocol.nack(deliveries[9])
    for tag in (1, 2):
        protocol.ack(deliveries[tag])
    assert said(protocol) == [
        (1, "basic.reject", [3, False]),
        (1, "basic.nack", [9, False, True]),
        (1, "basic.ack", [2, True]),
    ]
    assert not protocol.ack(deliveries[3]) and not protocol.nack(deliveries[3]) and not protocol.reject(deliveries[1])
    protocol.ack(deliveries[5])
    assert acks(protocol) == [(5, False)] and protocol.unsettled(1) == 0


def test_one_is_held_while_many_go_by():
    protocol = with_channel()
    held = delivered(protocol, 1)[1]
    for tag in range(2, 3000):
        assert protocol.ack(delivered(protocol, tag)[tag])
        assert acks(protocol) == [(tag, False)] and protocol.unsettled(1) == 1
    protocol.ack(held)
    assert acks(protocol) == [(1, False)]


def test_acks_of_what_is_gone():
    """A delivery belongs to its channel, of its connection: elsewhere its tag is another's."""
    protocol, other = with_channel(), with_channel()
    delivery = delivered(protocol, 1)[1]
    delivered(other, 1)
    assert not other.ack(delivery) and not other.nack(delivery) and other.unsettled(1) == 1
    protocol.receive(method(1, "channel.close", 406, "timeout", 0, 0))
    assert not protocol.ack(delivery) and not protocol.reject(delivery)
    assert protocol.open_channel() == 2
    protocol.take_output()
    protocol.lost("gone")
    assert not protocol.ack(delivery) and protocol.take_output() == b""
    assert not protocol.ack(Delivery()) and not protocol.nack(Delivery()) and Delivery().channel == 0
    with pytest.raises(TypeError):
        protocol.ack(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        protocol.nack(None)  # type: ignore[arg-type]


def test_acks_go_before_what_ends_them():
    for end in (lambda protocol: protocol.close_channel(1), lambda protocol: protocol.close()):
        protocol = with_channel()
        protocol.ack(delivered(protocol, 1)[1])
        end(protocol)
        assert [name for _, name, _ in said(protocol)] == [
            "basic.ack",
            f"{'channel' if protocol.is_open else 'connection'}.close",
        ]
        assert not protocol.ack(Delivery())


# Publishing


def test_a_publish():
    protocol = with_channel(confirms=True)
    properties = Properties(delivery_mode=2, headers={"x-mqcore-attempt": 1}, message_id="m")
    assert protocol.publish(1, "ex", "key", encode_properties(properties), b"hello") == 1
    out = protocol.take_output()
    (kind, channel, payload), _, body = frames(out)
    assert (kind, channel) == (1, 1) and body == (3, 1, b"hello")
    assert payload == b"\0\x3c\0\x28\0\0\x02ex\x03key\x01"
    [(mark, _)] = published(out)
    [delivery] = with_channel().receive(deliver(1, 1, b"hello", mark))
    assert delivery.properties() == properties  # the mark is not for consumers
    assert len(mark) == len(encode_properties(properties)) + 22 and b"x-mqcore-tag" in mark


@pytest.mark.parametrize(
    "fields", [{}, {"content_type": "a/b"}, {"content_type": "a", "content_encoding": "gzip", "app_id": "x"}]
)
@pytest.mark.parametrize("headers", [{}, {"a": 1}])
def test_the_mark_changes_nothing_else(fields, headers):
    properties = Properties(headers=headers, **fields)
    protocol = with_channel(confirms=True)
    for mandatory in (True, False):
        protocol.publish(1, "", "q", encode_properties(properties), b"", mandatory)
        [(mark, body)] = published(protocol.take_output())
        assert body == b"" and (b"x-mqcore-tag" in mark) == mandatory
        [delivery] = with_channel().receive(deliver(1, 1, b"", mark))
        assert delivery.properties() == properties


def test_what_is_large_between_what_is_small():
    """In the order in which it was said; none is copied, and none that was taken is taken again."""
    protocol = with_channel(confirms=True)
    bodies = [b"%d" % (size % 10) * size for size in (1, 8191, 8192, 0, 131_064, 131_065, 2, 400_000, 400_000, 8191, 3)]
    for _ in range(2):
        for body in bodies:
            protocol.publish(1, "", "q", NONE, body)
            protocol.send_heartbeat()
        out = protocol.take_output()
        assert [body for _, body in published(out)] == bodies and [kind for kind, *_ in frames(out)].count(8) == len(bodies)
        assert protocol.take_output() == b""
    protocol.publish(1, "", "q", NONE, b"x")
    assert [body for _, body in published(protocol.take_output())] == [b"x"]


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 8176, 8177, 300_000])
def test_large_bodies_are_cut(size):
    protocol = with_channel(confirms=True, frame_max=4096)
    body = bytes(number % 251 for number in range(size))
    protocol.publish(1, "", "q", NONE, body)
    protocol.publish(1, "", "q", NONE, b"next")
    out = protocol.take_output()
    assert all(len(payload) <= 4088 for _, _, payload in frames(out))
    assert [body for _, body in published(out)] == [body, b"next"]


def publish(protocol: ClientProtocol, count: int) -> list[bytes]:
    """The properties as they went out."""
    for _ in range(count):
        protocol.publish(1, "", "q", NONE, b"x")
    return [properties for properties, _ in published(protocol.take_output())]


def outcomes(events: list[Any]) -> list[tuple[int, str]]:
    assert all(isinstance(event, Outcome) for event in events)
    return [(event.tag, event.kind) for event in events]


def test_confirms_one_by_one_and_of_many():
    protocol = with_channel(confirms=True)
    publish(protocol, 9)
    assert protocol.unconfirmed(1) == 9
    assert outcomes(protocol.receive(method(1, "basic.ack", 3, False))) == [(3, "ack")]
    assert outcomes(protocol.receive(method(1, "basic.ack", 5, True))) == [(n, "ack") for n in (1, 2, 4, 5)]
    assert outcomes(protocol.receive(method(1, "basic.nack", 7, False, False))) == [(7, "nack")]
    assert outcomes(protocol.receive(method(1, "basic.nack", 0, True, False))) == [(n, "nack") for n in (6, 8, 9)]
    assert protocol.unconfirmed(1) == 0
    assert outcomes(protocol.receive(method(1, "basic.ack", 0, True))) == []


def test_many_publishes_on_the_way():
    protocol = with_channel(confirms=True)
    for turn in range(20):
        publish(protocol, 100)
        first = turn * 50
        assert outcomes(protocol.receive(method(1, "basic.ack", first + 50, True))) == [
            (first + n, "ack") for n in range(1, 51)
        ]
    assert protocol.unconfirmed(1) == 1000


def test_a_return_is_of_the_publish_that_came_back_and_not_of_the_next_confirm():
    """The broker gathers confirms: behind the return of 3 it may first confirm 2."""
    protocol = with_channel(confirms=True)
    sent = publish(protocol, 3)
    events = protocol.receive(returned(1, sent[2]) + method(1, "basic.ack", 2, False) + method(1, "basic.ack", 3, False))
    assert outcomes(events) == [(2, "ack"), (3, "returned")] and (events[1].code, events[1].text) == (312, "NO_ROUTE")
    assert outcomes(protocol.receive(method(1, "basic.ack", 1, False))) == [(1, "ack")]
    assert repr(events[1]) == "<Outcome returned of publish 3 on channel 1>"


def test_two_messages_of_one_id_and_one_comes_back():
    """A client library says of such two that the wrong one was lost."""
    protocol = with_channel(confirms=True)
    properties = encode_properties(Properties(message_id="same"))
    for key in ("nowhere", "q"):
        protocol.publish(1, "", key, properties, b"x")
    sent = [mark for mark, _ in published(protocol.take_output())]
    assert outcomes(protocol.receive(returned(1, sent[0]) + method(1, "basic.ack", 2, True))) == [(1, "returned"), (2, "ack")]


def test_a_message_that_has_a_mark_of_another():
    """One that is published again as it came."""
    protocol = with_channel(confirms=True)
    sent = publish(protocol, 5)
    protocol.publish(1, "", "q", sent[4], b"x")
    [(again, _)] = published(protocol.take_output())
    assert outcomes(protocol.receive(returned(1, again) + method(1, "basic.ack", 6, True)))[-1] == (6, "returned")


def in_order(header: bytes) -> bytes:
    """As RabbitMQ since 4.0 sends these properties, which are headers only, back: their headers in the order of their names."""
    entries, at = [], 6
    while at < len(header):
        name = header[at + 1 : at + 1 + header[at]]
        size = {b"l": 8, b"I": 4}[header[at + 1 + len(name) : at + 2 + len(name)]]
        entries.append((name, header[at : at + 2 + len(name) + size]))
        at += 2 + len(name) + size
    return header[:6] + b"".join(entry for _, entry in sorted(entries, key=lambda entry: entry[0]))


def test_a_return_whose_headers_came_in_another_order():
    protocol = with_channel(confirms=True)
    publish(protocol, 5)
    properties = encode_properties(Properties(headers={"a": 1, "x-mqcore-tag": 1 << 35, "z": 2}))  # another publisher's, too
    protocol.publish(1, "", "nowhere", properties, b"x")
    *_, (sent, _) = published(protocol.take_output())
    back = in_order(sent)
    assert back != sent and sorted(back) == sorted(sent)
    events = protocol.receive(returned(1, back) + method(1, "basic.ack", 6, True))
    assert outcomes(events)[-1] == (6, "returned")


@pytest.mark.parametrize("value", ["text", -1, 0, 1 << 40, None])
def test_a_return_whose_mark_is_none(value):
    protocol = with_channel(confirms=True)
    publish(protocol, 1)
    event = protocol.receive(returned(1, encode_properties(Properties(headers={"a": 1, "x-mqcore-tag": value}))))[-1]
    assert "what was not published" in event.text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (method(1, "basic.ack", 4, False), "basic.ack of 4, which does not wait for it"),
        (method(1, "basic.ack", 4, True), "basic.ack of 4"),
        (method(1, "basic.nack", 1, False, False), "basic.nack of 1"),
        (method(1, "basic.ack", 0, False), "basic.ack of 0"),
        (returned(1, NONE), "what was not published"),
        (returned(1, encode_properties(Properties(headers={"x-mqcore-tag": 1 << 40}))), "what was not published"),
        (returned(1, encode_properties(Properties(headers={"x-mqcore-tag": 1 << 40, "b": 2}))), "what was not published"),
        (returned(1, b""), "what was not published"),
    ],
)
def test_outcomes_of_what_was_not_published(data, text):
    """All the others are in doubt then."""
    protocol = with_channel(confirms=True)
    publish(protocol, 3)
    protocol.receive(method(1, "basic.ack", 1, False))
    *rest, event = protocol.receive(data)
    assert outcomes(rest) == [(2, "in doubt"), (3, "in doubt")]
    assert isinstance(event, ConnectionClosed) and text in event.text


def test_publishing_needs_confirms():
    protocol = with_channel()
    with pytest.raises(StateError, match="channel 1 is not in confirm mode"):
        protocol.publish(1, "", "q", NONE, b"x")
    with pytest.raises(StateError, match="channel 7 is not open"):
        protocol.publish(7, "", "q", NONE, b"x")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, "x" * 256, "q", NONE, b""), ValueError, "255 octets"),
        ((1, "", "é" * 128, NONE, b""), ValueError, "255 octets"),
        ((1, "", "\ud800", NONE, b""), ValueError, "surrogates"),
        ((1, "", "q", b"", b""), ValueError, "these are no properties"),
        ((1, "", "q", b"\x80\0", b""), ValueError, "these are no properties"),
        ((1, "", "q", b"\xc0\0\x01a", b""), ValueError, "these are no properties"),
        ((1, "", "q", b"\x20\0\0\0\0\x09", b""), ValueError, "these are no properties"),
        ((1, "", "q", encode_properties(Properties(headers={"a": "x" * 5000})), b""), ValueError, "the broker allows 4088"),
        ((1, None, "q", NONE, b""), TypeError, "texts and bytes"),
        ((1, "", "q", None, b""), TypeError, "texts and bytes"),
        ((1, "", "q", NONE, None), TypeError, "texts and bytes"),
        ((1, "", "q", NONE, bytearray(b"x")), TypeError, "bytearray"),
        ((-1, "", "q", NONE, b""), OverflowError, "negative"),
    ],
)
def test_what_cannot_be_published(arguments, error, text):
    protocol = with_channel(confirms=True, frame_max=4096)
    with pytest.raises(error, match=text):
        protocol.publish(*arguments)
    assert protocol.unconfirmed(1) == 0 and protocol.take_output() == b""
    assert protocol.publish(1, "", "q", NONE, b"") == 1


# What no broker sends


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (frame(4, 0, b""), 501, "no frames of type 4"),
        (struct.pack(">BHI", 1, 1, 131_065), 501, "a frame of 131073 octets; it may have 131072"),
        (method(1, "basic.qos-ok")[:-1] + b"\0", 501, "does not end where it should"),
        (frame(8, 1, b""), 501, "heartbeat"),
        (frame(8, 0, b"x"), 501, "heartbeat"),
        (frame(1, 1, b""), 503, "no method 0.0"),
        (frame(1, 1, b"\0\x3c\0"), 503, "no method"),
        (frame(1, 1, b"\0\x3c\0\x3c"), 502, "too early"),
        (frame(1, 1, b"\0\x3c\0\x3d"), 503, "no method 60.61"),
        (method(2, "basic.qos-ok"), 504, "a frame on channel 2, which is not open"),
        (frame(2, 0, b""), 504, "channel 0"),
        (frame(3, 9, b""), 504, "channel 9"),
        (method(0, "basic.qos-ok"), 503, "basic.qos-ok where it makes no sense"),
        (method(0, "basic.deliver", "", 1, False, "", ""), 503, "basic.deliver where it makes no sense"),
        (method(1, "connection.blocked", ""), 503, "connection.blocked on channel 1"),
        (START, 503, "connection.start where it makes no sense"),
        (method(0, "connection.close-ok"), 503, "connection.close-ok where"),
        (method(0, "connection.secure", b""), 503, "connection.secure where"),
        (method(1, "basic.qos-ok"), 503, "basic.qos-ok on channel 1, for which nobody asked"),
        (method(1, "channel.close-ok"), 503, "channel.close-ok on channel 1"),
        (method(1, "basic.get-ok", 1, False, "", "", 0), 503, "for which nobody asked"),
        (method(1, "basic.publish", 0, "", "", False, False), 503, "basic.publish on channel 1"),
        (method(1, "basic.ack", 1, False), 503, "on which nothing was published"),
        (returned(1, NONE), 503, "on which nothing was published"),
        (frame(1, 1, b"\0\x3c\0\x50\0"), 502, "basic.ack with 1 octets"),
        (frame(2, 1, struct.pack(">HHQ", 60, 0, 1) + NONE), 505, "a header without a method"),
        (frame(3, 1, b"x"), 505, "a body without a header"),
        (deliver(1, 1, b"xy")[:-10] + frame(3, 1, b"xyz"), 501, "more octets than its header says"),
        (method(1, "basic.deliver", "", 1, False, "", "") * 2, 505, "a method within a message"),
        (method(1, "basic.deliver", "", 1, False, "", "") + frame(3, 1, b""), 505, "a body without a header"),
        (method(1, "basic.deliver", "", 1, False, "", "") + frame(2, 1, b"\0\x3c"), 502, "no header of a message"),
        (method(1, "basic.deliver", "", 1, False, "", "") + frame(2, 1, struct.pack(">HHQ", 50, 0, 1)), 502, "no header"),
        (deliver(1, 1, b"xy")[:-1] + b"\0", 501, "does not end where it should"),
        (deliver(1, 1, b"") * 2, 503, "delivery 1 comes behind 1 on channel 1"),
        (deliver(1, 0, b""), 503, "delivery 0 comes behind 0"),
        (frame(1, 1, b"\0\x3c\0\x3c\xff"), 502, "too early"),
    ],
)
def test_what_makes_no_sense_ends_the_connection(data, code, text):
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        protocol = with_channel()
        events = [event for piece in pieces for event in protocol.receive(piece)]
        assert text in events[-1].text and events[-1] == ConnectionClosed(code, events[-1].text, "", False)
        assert protocol.closed
        assert said(protocol) == [(0, "connection.close", [code, events[-1].text, 0, 0])]
        assert protocol.receive(data) == []


def test_a_broker_that_wants_frames_too_small():
    protocol = ClientProtocol(ClientOptions(user="a"))
    [event] = protocol.receive(START + method(0, "connection.tune", 0, 100, 0))
    assert "less than AMQP allows" in event.text


def talk() -> bytes:
    """A bit of all that a broker says, from the beginning on."""
    return (
        START
        + TUNE
        + OPEN_OK
        + method(0, "connection.blocked", "low on memory")
        + frame(8, 0, b"")
        + method(0, "connection.unblocked")
        + BACK
    )


def test_any_split_is_the_same():
    data = talk()
    whole = ClientProtocol(ClientOptions(user="a"))
    expected = whole.receive(data)
    for pieces in [[data[:at], data[at:]] for at in range(len(data))] + [[data[at : at + 1] for at in range(len(data))]]:
        protocol = ClientProtocol(ClientOptions(user="a"))
        assert [event for piece in pieces for event in protocol.receive(piece)] == expected


def test_any_split_of_messages_is_the_same():
    data = (
        deliver(1, 1, b"hello, world", piece=5)
        + method(1, "basic.ack", 2, True)
        + deliver(1, 2, b"")
        + deliver(1, 3, b"x" * 20, piece=7)
    )
    expected = None
    for pieces in (
        [[data]] + [[data[:at], data[at:]] for at in range(len(data))] + [[data[at : at + 1] for at in range(len(data))]]
    ):
        protocol = with_channel(confirms=True)
        publish(protocol, 2)
        events = seen([event for piece in pieces for event in protocol.receive(piece)])
        expected = expected or events
        assert events == expected and len(events) == 5


def test_misuse():
    protocol = with_channel()
    with pytest.raises(TypeError):
        protocol.receive(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        protocol.receive(bytearray(b""))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ClientProtocol(None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        ClientProtocol(1)  # type: ignore[arg-type]


def test_nothing_is_left_in_memory():
    def count() -> int:
        gc.collect()
        return sum(type(thing) is ClientProtocol for thing in gc.get_objects())

    before = count()
    protocol = with_channel(confirms=True)
    kept = [protocol.receive(deliver(1, 1, b"x")), protocol.publish(1, "", "q", NONE, b"")]
    assert count() == before + 1
    del protocol
    assert count() == before
    assert kept[0][0].body == b"x"
