"""`amqp:` as a source: each message acknowledged once its mail is with its next owner, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from amqp_broker import Item, QueueBroker, serving
from amqp_reading import disconnect, number_of, reading
from amqp_tools import method
from sending_tools import NextServer
from smtp_tools import ListSink, run
from waiting import until

from mqcore.amqp._properties import decode_properties
from mqcore.amqp.client import Properties, encode_properties
from mqcore.mail import ACCEPTED, Mail, Sink, SinkFull, SmtpSink
from mqcore.mail.amqp.sink import AmqpSink
from mqcore.mail.amqp.url import parse
from mqcore.mail.places import parse_source

RAW = "message/rfc822"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.delays", lambda: iter(lambda: 0.001, None))
    monkeypatch.setattr("mqcore.mail.amqp.declare.NEWBORN", 0.0)
    monkeypatch.setattr("mqcore.mail.amqp.outlet.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("mqcore.mail.amqp.consumer.LEFT_FOR", 0.01)


def message(number: int, *, id: str | None = "", **known: Any) -> Item:
    """One with an id of its own, unless `id` says otherwise."""
    body = {"envelope": "a@example.org", "recipient": "b@example.org", "mime": f"Subject: {number}\n\nhello\n", **known}
    return Item(json.dumps(body).encode(), encode_properties(Properties(message_id=f"m{number}" if id == "" else id)))


@run
async def test_what_is_read_and_acknowledged():
    broker = QueueBroker()
    seen: list[Mail] = []
    broker.put("q", *(message(number, own=[number]) for number in range(20)))
    async with reading(broker, lambda context, mail: seen.append(mail)) as it:
        await it.settled(20)
        assert it.stored == [*range(20)] and len(broker.acked) == 20
        assert (seen[3].envelope, seen[3].recipient, seen[3].json["own"]) == ("a@example.org", "b@example.org", [3])
        assert it.gateway.source.figures()["amqp_in"]["acks"] == 20
        assert it.gateway.source.figures()["amqp_in"]["connections"] == 2
    assert it.report.exit_code == 0 and it.counts.continued == 20
    assert broker.names.count("basic.consume") == 1 and broker.prefetches == [1000]
    assert broker.names.count("basic.ack") < 20, "those of one turn go together"


@run
async def test_no_more_than_may_be_on_the_way():
    broker = QueueBroker()
    broker.put("q", *map(message, range(10)))
    async with reading(broker, lambda context, mail: True, max_in_flight=3) as it:
        await it.until(lambda: it.counts.read == 3)
        assert broker.delivered == broker.unsettled == 3 and broker.prefetches == [3]
    assert it.counts.read == it.counts.unfinished == 3
    assert [how for how, _ in broker.settled] == ["nack"] * 3, "what a plugin held goes back"
    assert len(broker.queues["q"]) == 10


@run
async def test_raw_mails_have_what_is_known_in_headers():
    broker = QueueBroker()
    seen: list[Mail] = []
    headers = {"envelope": "a@b", "recipients": ["c@d", "e@f"], "x-own": 1}
    broker.put("q", Item(b"Subject: 1\r\n\r\n\xff\r\n", encode_properties(Properties(content_type=RAW, headers=headers))))
    async with reading(broker, lambda context, mail: seen.append(mail)) as it:
        await it.settled(1)
        assert seen[0].mime == b"Subject: 1\r\n\r\n\xff\r\n"
        assert (seen[0].envelope, seen[0].recipients, "x-own" in seen[0].json) == ("a@b", ["c@d", "e@f"], False)


@run
async def test_the_first_signal():
    """What the sink has is acknowledged, what plugins hold goes back, as does what comes later."""
    broker = QueueBroker()
    broker.put("q", *map(message, range(6)))
    held: list[Any] = []

    def hold(context, mail):
        if number_of(mail.mime) >= 3:
            held.append(mail)
            return True
        return False

    async with reading(broker, hold) as it:
        await it.until(lambda: len(held) == 3 and len(broker.settled) == 3)
        it.gateway.stop()
        broker.put("q", message(7))
    assert it.stored == [0, 1, 2] and it.counts.unfinished == 3
    assert sorted(number_of(json.loads(body)["mime"].encode()) for body in broker.bodies("q")) == [3, 4, 5, 7]
    assert broker.names.index("basic.cancel") > broker.names.index("basic.consume")


@run
async def test_stopped_before_there_is_a_connection():
    broker = QueueBroker(connection__start_ok=None)
    async with reading(broker) as it:
        await broker.until(lambda: broker.names)
        it.gateway.stop()


@run
async def test_what_the_sink_has_already_is_skipped():
    broker = QueueBroker()

    class Remembering(ListSink):
        def __contains__(self, id):
            return any(mail.origin.id == id for mail in self.mails)

    broker.put("q", message(1), message(1), message(2, id=None), message(2, id=None))
    async with reading(broker, sink=Remembering(), max_in_flight=1) as it:
        await it.settled(4)
        assert it.stored == [1, 2, 2]
    assert it.counts.present == 1 and it.counts.continued == 3


# What is refused, or fails


def refusing(context: Any, mail: Mail) -> None:
    """By the number of the mail."""
    number = number_of(mail.mime)
    mail.json["of a plugin"] = 1
    mail.mime = b"Subject: changed\n\n"
    if number == 1:
        mail.reject(550, "5.7.1 no")
    elif number == 2:
        mail.reject(450, "4.7.1 later")
    elif number == 3:
        raise ValueError("a bug")


def headers_of(item: Item) -> dict[str, Any]:
    return dict(decode_properties(item.properties).headers)


@run
async def test_what_is_refused_for_good_goes_to_the_queue_of_what_failed():
    broker = QueueBroker()
    sent = message(1)
    broker.put("q", sent)
    async with reading(broker, refusing) as it:
        await it.settled(1)
    (item,) = broker.queues["q.failed"]
    assert item.body == sent.body and decode_properties(item.properties).message_id == "m1"
    headers = headers_of(item)
    assert headers["x-mqcore-error"] == "550 5.7.1 no" and headers["x-mqcore-time"][4] == "-"
    assert headers["x-mqcore-source"] == f"amqp://127.0.0.1:{broker.port}?queue=q" and headers["x-mqcore-where"]
    assert (it.counts.rejected, len(broker.acked)) == (1, 1)


@pytest.mark.parametrize(("number", "why"), [(2, "450 4.7.1 later"), (3, "ValueError: a bug")])
@run
async def test_what_is_deferred_or_fails_comes_again_later_as_it_was_received(number, why):
    broker = QueueBroker()
    broker.put("q", message(number, own=1))
    async with reading(broker, refusing) as it:
        await it.settled(1)
        assert it.counts.retried == 1 and "q.failed" in broker.queues
        for rung, attempt in ((60, 2), (300, 3), (900, 4), (3600, 5), (3600, 6)):
            (item,) = broker.queues[f"q.retry.{rung}"]
            assert (
                headers_of(item) == {"x-mqcore-attempt": attempt}
                and decode_properties(item.properties).message_id == f"m{number}"
            )
            body = json.loads(item.body)
            assert body["mime"] == f"Subject: {number}\n\nhello\n" and body["own"] == 1 and "of a plugin" not in body
            assert len(body["results"]) == attempt - 1 and body["received"][4] == "-"
            assert (body["results"][-1]["result"], body["results"][-1]["to"]) == ("retry", "b@example.org")
            assert why.endswith(body["results"][-1]["description"])
            broker.queues[f"q.retry.{rung}"].clear()
            broker.put("q", item)
            await it.settled(attempt)
    assert broker.bodies("q.failed") == [] and it.counts.retried == 6


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"maxattempts": 1}, "450 4.7.1 later (it was tried 1 times, as often as its maxattempts allows)"),
        ({"received": "2020-01-01 00:00:00"}, "450 4.7.1 later (its time is over: it would be tried again in 60 s)"),
        ({"maxdelivertime": 59}, "450 4.7.1 later (its time is over: it would be tried again in 60 s)"),
        ({"maxdelivertime": "2026-01-01 00:00:00"}, "450 4.7.1 later (its time is over: it would be tried again in 60 s)"),
        ({"retries": []}, "450 4.7.1 later (its retries are none)"),
    ],
)
@run
async def test_what_is_not_tried_again(known, why):
    broker = QueueBroker()
    broker.put("q", message(2, **known))
    async with reading(broker, refusing) as it:
        await it.settled(1)
    (item,) = broker.queues["q.failed"]
    assert headers_of(item)["x-mqcore-error"] == why
    assert (it.counts.rejected, it.counts.retried, len(broker.acked)) == (1, 0, 1)


@pytest.mark.parametrize(("retries", "rung"), [([10], 60), ([61, 1], 300), ([100_000], 3600), (["x"], 60)])
@run
async def test_a_mail_says_itself_when_it_comes_again(retries, rung):
    broker = QueueBroker()
    broker.put("q", message(2, retries=retries))
    async with reading(broker, refusing) as it:
        await it.settled(1)
    assert len(broker.queues[f"q.retry.{rung}"]) == 1


@run
async def test_a_mail_whose_time_has_not_come():
    broker = QueueBroker()
    broker.put(
        "q", message(0, nextattempt={"time": "2100-01-01 00:00:00"}), message(4, nextattempt={"time": "2020-01-01 00:00:00"})
    )
    async with reading(broker, refusing) as it:
        await it.settled(2)
        assert it.counts.retried == 1 and len(it.sink.mails) == 1
    (item,) = broker.queues["q.retry.3600"]
    assert number_of(json.loads(item.body)["mime"].encode()) == 0 and headers_of(item) == {"x-mqcore-attempt": 1}


@run
async def test_headers_that_would_lead_it_elsewhere_are_not_passed_on():
    broker = QueueBroker()
    headers = {"x-death": [{"queue": "q.retry.60"}], "x-first-death-queue": "q.retry.60", "CC": ["elsewhere"], "own": "x"}
    properties = Properties(headers=headers, expiration="1000", user_id="someone", message_id="m2")
    broker.put("q", Item(message(2).body, encode_properties(properties)))
    async with reading(broker, refusing) as it:
        await it.settled(1)
    passed_on = decode_properties(broker.queues["q.retry.60"][0].properties)
    assert passed_on.headers == {"own": "x", "x-mqcore-attempt": 2}
    assert (passed_on.expiration, passed_on.user_id, passed_on.message_id, passed_on.delivery_mode) == (None, None, "m2", 2)


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b"{}", b'{"mime": {}}', b'{"key": "x"}', b'{"mime": "x", "recipient": 5}'])
@run
async def test_what_is_no_mail(body):
    broker = QueueBroker()
    broker.put("q", Item(body))
    async with reading(broker) as it:
        await it.settled(1)
        assert it.counts.rejected == 1
    assert broker.bodies("q.failed") == [body]
    assert headers_of(broker.queues["q.failed"][0])["x-mqcore-error"].startswith(("its ", "it "))


@run
async def test_a_place_for_failed_mails_comes_before_the_queue():
    broker = QueueBroker()
    broker.put("q", message(1), message(3), message(4))
    async with reading(broker, refusing, mixed=True, query="queue=q&retry=no") as it:
        await it.settled(3)
        assert sorted(number_of(mail.mime) for mail in it.failed.mails) == [1, 3]
    assert (it.counts.rejected, it.counts.failed) == (1, 1) and broker.queues["q.failed"] == []


@run
async def test_a_place_for_failed_mails_that_cannot_be_written_ends_the_run():
    broker = QueueBroker()
    broker.put("q", message(1))
    async with reading(broker, refusing, mixed=True, fails=True) as it:
        it.failed.error = "the disk broke"
        await broker.until(lambda: broker.settled)
    assert it.report.exit_code == 4 and len(broker.queues["q"]) == 1 and it.counts.unfinished == 1


@run
async def test_a_queue_for_failed_mails_that_is_gone_ends_the_run():
    broker = QueueBroker()
    broker.outcome = lambda number: "returned"
    broker.put("q", message(1))
    async with reading(broker, refusing, fails=True) as it:
        await broker.until(lambda: broker.settled)
    assert it.report.exit_code == 4 and "q.failed" in it.report.error and "312 NO_ROUTE" in it.report.error
    assert len(broker.queues["q"]) == 1 and it.counts.returned == 1


@run
async def test_a_queue_for_failed_mails_that_is_full_is_waited_for():
    broker = QueueBroker()
    broker.outcome = lambda number: "nack" if number < 3 else "ack"
    broker.put("q", message(1))
    async with reading(broker, refusing) as it:
        await it.settled(1)
    assert len(broker.queues["q.failed"]) == len(broker.acked) == 1 and it.counts.nacked == 2


@run
async def test_a_sink_that_is_full_is_waited_for(monkeypatch):
    """No attempt is charged."""

    class Full(ListSink):
        tries = 0

        def store(self, mails):
            self.tries += 1
            if self.tries < 2:
                raise SinkFull("there is no room")
            super().store(mails)

    broker = QueueBroker()
    broker.put("q", message(4))
    async with reading(broker, sink=Full()) as it:
        await it.settled(1)
    assert len(broker.acked) == 1 and it.counts.continued == 1 and it.counts.retried == 0


# What became of each


@pytest.mark.parametrize("keep", [False, True])
@run
async def test_results(keep):
    broker = QueueBroker()
    more = {"keepmime": True} if keep else {}
    broker.put("q", message(1, **more), message(2, **more), message(4, **more))
    async with reading(broker, refusing, query="queue=q&results=r") as it:
        await it.settled(3)
    found = {json.loads(body)["results"][0]["result"]: json.loads(body) for body in broker.bodies("r")}
    assert set(found) == {"success", "failure"} and len(broker.queues["r"]) == 2
    assert found["failure"]["results"][0] == {
        "state": "message",
        "result": "failure",
        "time": found["failure"]["results"][0]["time"],
        "from": "a@example.org",
        "to": "b@example.org",
        "code": 550,
        "status": "5.7.1",
        "description": "no",
    }
    assert all(("mime" in body) == keep for body in found.values())


def test_urls():
    url = parse("amqp", "//a:b@h?queue=q&failed=f&retry=300,5&results=r&until=empty&declare=no", "--from")
    assert (url.failed, url.ladder, url.results, url.until_empty, url.declares) == ("f", (5, 300), "r", True, False)
    assert parse("amqp", "//a:b@h?queue=q", "--from").ladder == (60, 300, 900, 3600)
    assert parse("amqp", "//a:b@h?queue=q&retry=no", "--from").ladder == ()
    assert parse_source("amqps://a:b@h?queue=q").kind.scheme == "amqps"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("queue=q&exchange=x", "'exchange' is no parameter of --from amqp:"),
        ("queue=q&retry=", "retry can be no, or up to 20 numbers of seconds"),
        ("queue=q&retry=0", "retry can be no"),
        ("queue=q&retry=60,x", "retry can be no"),
        ("queue=q&until=noon", "until can be never or empty"),
        (f"queue={'x' * 248}", "the name of the queue is too long, as .retry.3600 is put behind it"),
    ],
)
def test_urls_that_are_none(query, text):
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        parse_source(f"amqp://me:topsecret@host?{query}")


# Connections that are lost


class Gated(Sink):
    """Takes mails when it is told to."""

    url = "gated:"

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.waiting = 0
        self.gate = asyncio.Event()

    async def deliver(self, mails):
        self.waiting += 1
        await self.gate.wait()
        self.mails += mails
        return [ACCEPTED] * len(mails)


@run
async def test_a_connection_that_is_lost():
    """What the sink has is in doubt, is known when it comes again, and no old tag is sent. What plugins held is theirs until
    they are done with it, and is then dropped."""
    broker = QueueBroker()
    broker.put("q", *map(message, range(6)))
    held: list[tuple[Any, Mail]] = []

    def hold(context, mail):
        if number_of(mail.mime) >= 3 and len(held) < 3:
            held.append((context, mail))
            return True
        return False

    async with reading(broker, hold, sink=Gated()) as it:
        await it.until(lambda: it.sink.waiting == 3 and len(held) == 3)
        disconnect(broker)
        await it.until(lambda: it.counts.reconnects == 2)
        it.sink.gate.set()
        await it.until(lambda: len(it.sink.mails) >= 3)
        for context, mail in held:
            context.continue_(mail)
        await it.until(lambda: not broker.unsettled and not broker.queues["q"])
    assert it.counts.in_doubt == 3 and it.counts.redelivered == 6 and it.counts.unfinished == 3
    assert it.counts.continued + it.counts.present == 9
    assert set(it.stored) == {*range(6)} and len(it.stored) - 6 <= it.counts.in_doubt


@run
async def test_few_at_first_after_a_loss():
    broker = QueueBroker()
    async with reading(broker) as it:
        await it.until(lambda: broker.consumers)
        disconnect(broker)
        await it.until(lambda: it.counts.reconnects == 2)
        broker.put("q", *map(message, range(150)))
        await it.settled(150)
    assert broker.prefetches == [1000, 1, 10, 100, 1000] and it.stored == [*range(150)]


@run
async def test_few_at_first_where_a_process_ended():
    broker = QueueBroker()
    broker.put("q", *map(message, range(20)))
    async with reading(broker, starts_slowly=True, max_in_flight=5) as it:
        await it.settled(20)
    assert broker.prefetches == [1, 5]


@run
async def test_a_consumer_that_the_broker_cancels():
    broker = QueueBroker()
    async with reading(broker) as it:
        await it.until(lambda: broker.consumers)
        writer, channel = next(iter(broker.consumers))
        writer.write(method(channel, "basic.cancel", "mqcore", True))
        await it.until(lambda: len(broker.prefetches) == 2)
        broker.put("q", message(1))
        await it.settled(1)


@run
async def test_a_queue_that_has_forgotten_its_consumer(monkeypatch):
    """As RabbitMQ's do that are deleted, and made again at once. One that gives nothing as it is empty is left in peace."""
    monkeypatch.setattr("mqcore.mail.amqp.consumer.FORGOTTEN_AFTER", 0.05)
    broker = QueueBroker()
    async with reading(broker) as it:
        await it.until(lambda: broker.consumers)
        await it.until(lambda: broker.names.count("queue.declare") > 10)
        assert len(broker.prefetches) == 1
        broker.consumers.clear()
        broker.put("q", *map(message, range(5)))
        await it.settled(5)
    assert it.stored == [*range(5)] and it.counts.reconnects == 1 and it.counts.redelivered == 0


@run
async def test_a_queue_that_is_deleted_ends_the_run_after_a_while(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.PATIENCE", 0.05)
    broker = QueueBroker()
    refused = lambda channel, *_: method(channel, "channel.close", 404, "NOT_FOUND - no queue 'q'", 60, 20)  # noqa: E731
    async with reading(broker, fails=True) as it:
        await it.until(lambda: broker.consumers)
        broker.answers["basic.consume"] = refused
        writer, channel = next(iter(broker.consumers))
        writer.write(method(channel, "basic.cancel", "mqcore", True))
        await until(lambda: it.gateway.report.error is not None)
    assert it.report.exit_code == 4 and "NOT_FOUND - no queue 'q'" in it.report.error


@run
async def test_a_channel_that_the_broker_closes():
    broker = QueueBroker()
    broker.put("q", message(1))
    async with reading(broker, sink=Gated()) as it:
        await it.until(lambda: it.sink.waiting == 1)
        writer, channel = next(iter(broker.consumers))
        writer.write(method(channel, "channel.close", 406, "PRECONDITION_FAILED - delivery acknowledgement timed out", 0, 0))
        await it.until(lambda: it.counts.reconnects == 1)
        it.sink.gate.set()
        await it.settled(1)
    assert it.counts.in_doubt == 1 and len(it.sink.mails) + it.counts.present == 2


@pytest.mark.parametrize(
    ("code", "text"), [(403, "ACCESS_REFUSED - Login was refused"), (530, "NOT_ALLOWED - vhost x not found")]
)
@run
async def test_who_may_not_read(code, text):
    broker = QueueBroker(connection__start_ok=lambda *_: method(0, "connection.close", code, text, 0, 0))
    async with reading(broker, fails=True) as it:
        await broker.until(lambda: broker.names)
        await until(lambda: it.gateway.report.error is not None)
    assert it.report.exit_code == 4 and text in it.report.error and "secret" not in it.report.error


@pytest.mark.parametrize("missing", ["q", "q.failed", "q.retry.900"])
@run
async def test_queues_that_are_not_to_be_made(missing):
    broker = QueueBroker(missing=[missing])
    async with reading(broker, query="queue=q&declare=no", fails=True) as it:
        await until(lambda: it.gateway.report.error is not None)
    assert it.report.exit_code == 4 and f"no queue '{missing}'" in it.report.error


@run
async def test_reading_is_paused_while_much_is_held(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.consumer.HELD_BYTES", 1000)
    broker = QueueBroker()
    big = [message(number, filler="x" * 400_000) for number in range(40)]
    broker.put("q", *big)
    async with reading(broker, sink=Gated()) as it:
        await it.until(lambda: it.sink.waiting)
        await asyncio.sleep(0.05)
        assert it.sink.waiting < 40
        it.sink.gate.set()
        await it.settled(40)


@run
async def test_until_the_queue_is_empty(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.consumer.EMPTY_AFTER", 0.05)
    broker = QueueBroker()
    broker.put("q", *map(message, range(5)))
    async with reading(broker, query="queue=q&until=empty") as it:
        await it.until(lambda: it.gateway.is_draining)
    assert it.stored == [*range(5)] and it.report.exit_code == 0 and it.counts.unfinished == 0


# To other places


@run
async def test_only_those_recipients_come_again_for_whom_it_is_not_over():
    server = NextServer({"a@x": ["250 ok"], "b@x": ["450 4.2.1 later"], "c@x": ["550 5.1.1 nobody"]})
    await server.start()
    broker = QueueBroker()
    broker.put("q", message(1, recipient=None, recipients=["a@x", "b@x", "c@x"]))
    async with reading(broker, sink=SmtpSink(f"//127.0.0.1:{server.port}")) as it:
        await it.settled(1)
    await server.stop()
    assert [recipients for _, recipients, _ in server.mails] == [["a@x"]]
    later, failed = json.loads(broker.bodies("q.retry.60")[0]), json.loads(broker.bodies("q.failed")[0])
    assert (later["recipient"], later["recipients"]) == ("b@x", ["b@x"])
    assert (failed["recipient"], failed["recipients"]) == ("c@x", ["c@x"])
    assert [(one["to"], one["result"], one["code"]) for one in later["results"]] == [
        ("a@x", "success", 250),
        ("b@x", "retry", 450),
        ("c@x", "failure", 550),
    ]
    assert it.counts.retried == 1 and it.counts.in_doubt == 0


@run
async def test_a_server_that_is_away_costs_no_attempt(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.QUEUE_PAUSES", (0.01,))
    monkeypatch.setattr("mqcore.mail.smtp.pool.AWAY_FOR", 0.01)
    server = NextServer()
    await server.start()
    await server.stop()
    broker = QueueBroker()
    broker.put("q", message(1), message(2))
    async with reading(broker, sink=SmtpSink(f"//127.0.0.1:{server.port}")) as it:
        await it.until(lambda: it.counts.unfinished >= 2 and len(broker.queues["q"]) == 2)
        await server.start()
        await it.until(lambda: len(broker.acked) == 2)
    await server.stop()
    assert len(server.mails) == 2 and it.counts.continued == 2 and it.counts.unfinished >= 2 and it.counts.retried == 0
    assert broker.prefetches[:2] == [1000, 1], "one is tried before the others"


@run
async def test_from_queue_to_queue():
    broker = QueueBroker()
    broker.outcome = lambda number: "nack" if number == 2 else "ack"
    broker.put("q", *map(message, range(5)))
    async with serving(QueueBroker()) as other:
        sink = AmqpSink(f"//guest:secret@127.0.0.1:{other.port}/?queue=out")
        async with reading(broker, sink=sink) as it:
            await it.settled(5)
        assert sorted(number_of(json.loads(body)["mime"].encode()) for body in other.bodies("out")) == [*range(5)]
        assert [json.loads(body)["recipient"] for body in other.bodies("out")] == ["b@example.org"] * 5


@run
async def test_from_queue_to_queue_where_both_connections_are_lost():
    """What had not been confirmed is forgotten, as it comes again."""
    broker = QueueBroker()
    broker.put("q", message(1))
    other = QueueBroker()
    other.outcome = lambda number: None if number == 1 else "ack"
    async with serving(other):
        sink = AmqpSink(f"//guest:secret@127.0.0.1:{other.port}/?queue=out")
        async with reading(broker, sink=sink) as it:
            await it.until(lambda: other.sent)
            disconnect(broker)
            await it.until(lambda: it.counts.reconnects >= 2)
            disconnect(other)
            await it.settled(1)
        assert len(other.bodies("out")) == 1 and it.counts.in_doubt == 1 and it.counts.unfinished == 1


@run
async def test_what_comes_again_with_the_same_id_is_not_taken_for_done_with():
    """A raw mail is the same in the ladder; there the broker may lose its consumer, too, and say so."""
    broker = QueueBroker()
    properties = Properties(content_type=RAW, message_id="m", headers={"recipient": "c@d"})
    broker.put("q", Item(b"Subject: 2\n\n", encode_properties(properties)))
    later = iter([True, False])

    def hook(context, mail):
        if next(later):
            mail.reject(450, "4.7.1 later")

    async with reading(broker, hook) as it:
        await it.settled(1)
        (item,) = broker.queues.pop("q.retry.60")
        item.redelivered = True
        broker.put("q", item)
        await it.settled(2)
    assert len(it.sink.mails) == 1 and it.counts.present == 0 and it.sink.mails[0].json["results"][0]["code"] == 450
