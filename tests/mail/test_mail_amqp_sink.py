"""`amqp:` as a sink: each mail confirmed once, whatever the broker says and wherever the connection breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp_broker import Broker, broker
from amqp_tools import method
from sending_tools import ListSource
from smtp_tools import ListSink, run
from smtp_tools import serving as smtp_serving
from waiting import until

import mqcore
from mqcore.amqp._properties import decode_properties
from mqcore.mail import FailedSink, Gateway, Mail, MboxSource, Report, SinkError, Source, Transaction, Verdict
from mqcore.mail.amqp.sink import AmqpSink
from mqcore.mail.amqp.url import parse
from mqcore.mail.places import parse_sink, without_login

MAILS = [b"Subject: %d\n\nhello\n" % number for number in range(5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.session.delays", lambda: iter(lambda: 0.001, None))
    monkeypatch.setattr("mqcore.mail.amqp.declare.NEWBORN", 0.0)
    monkeypatch.setattr("mqcore.mail.amqp.publisher.FIRST_PAUSE", 0.001)


def sink_to(it: Broker, query: str = "queue=q", **options: Any) -> AmqpSink:
    return AmqpSink(f"//guest:secret@127.0.0.1:{it.port}/?{query}", **options)


class WaitingSource(Source):
    """A client waits for each mail, and is told."""

    url = "waiting:"
    has_waiting_client = True

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    async def run(self, gateway: Gateway) -> None:
        gateway.offer([Waiting(mime, self.verdicts) for mime in MAILS])

    def stop(self) -> None:
        """All is offered already."""


class Waiting(Transaction):
    def __init__(self, mime: bytes, verdicts: list[Verdict]) -> None:
        super().__init__([Mail(mime, envelope="a@b", recipients=["c@d"])])
        self.verdicts = verdicts

    def settle(self, verdicts: list[Verdict]) -> None:
        self.verdicts += verdicts


async def move(
    sink: AmqpSink, source: Any = None, during: Callable[[Gateway], Any] | None = None
) -> tuple[Report, list[Mail], Gateway]:
    failed = ListSink()
    with contextlib.closing(sink), mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        gateway = Gateway(dispatcher, source or ListSource(MAILS, "a@b", "c@d"), sink, FailedSink(failed, "list:"))
        running = asyncio.create_task(gateway.run())
        if during is not None:
            await during(gateway)
        report = await running
    counts = report.counts
    ends = (counts.present, counts.continued, counts.completed, counts.failed, counts.rejected, counts.unfinished)
    assert counts.read == sum(ends)
    return report, failed.mails, gateway


def mimes(it: Broker) -> list[bytes]:
    return [json.loads(body)["mime"].encode() for _, body in it.sent]


@run
async def test_what_is_published():
    async with broker() as it:
        it.outcome = lambda number: "ack"
        report, failed, _ = await move(sink_to(it))
        assert report.exit_code == 0 and report.counts.continued == 5 and not failed
        assert sorted(mimes(it)) == MAILS
        properties = decode_properties(it.sent[0][0])
        body = json.loads(it.sent[0][1])
        assert (properties.content_type, properties.delivery_mode, properties.app_id) == ("application/json", 2, "mqcore")
        assert properties.message_id == body["message-id"] and len(properties.message_id) == 32
        assert properties.headers == {"x-mqcore-attempt": 1} and properties.timestamp > 1_700_000_000
        assert (body["envelope"], body["recipient"]) == ("a@b", "c@d") and body["received"][4] == "-" and body["hostname"]
        assert it.names[:9] == [
            *("connection.start-ok", "connection.tune-ok", "connection.open"),
            *("channel.open", "queue.declare", "channel.close", "channel.open", "queue.declare", "channel.close"),
        ]
        assert it.names[-1] == "connection.close"


@run
async def test_raw_mails():
    async with broker() as it:
        it.outcome = lambda number: "ack"
        await move(sink_to(it, "queue=q&format=mime"))
        properties, body = it.sent[0]
        assert body in MAILS
        assert decode_properties(properties).content_type == "message/rfc822"
        assert decode_properties(properties).headers == {"envelope": "a@b", "recipient": "c@d", "x-mqcore-attempt": 1}


@run
async def test_no_login_but_a_file(tmp_path):
    path = tmp_path / "login"
    path.write_text("guest\nsecret\n")
    path.chmod(0o600)
    async with broker() as it:
        it.outcome = lambda number: "ack"
        report, *_ = await move(AmqpSink(f"//127.0.0.1:{it.port}?queue=q", credentials=str(path)))
        assert report.exit_code == 0 and len(it.sent) == 5


@run
async def test_an_exchange_is_looked_for_and_nothing_declared():
    async with broker(exchange__declare=lambda channel, *_: method(channel, "exchange.declare-ok")) as it:
        it.outcome = lambda number: "ack"
        await move(sink_to(it, "exchange=mails&queue=key"))
        assert "queue.declare" not in it.names and "exchange.declare" in it.names and len(it.sent) == 5


@run
async def test_a_queue_that_is_not_there_is_made_after_that_of_what_failed():
    known: list[tuple[str, bool, dict[str, Any]]] = []

    def declare(channel: int, _: int, queue: str, passive: bool, durable: bool, *rest: Any) -> bytes:
        known.append((queue, passive, rest[-1]))
        if passive:
            return method(channel, "channel.close", 404, f"NOT_FOUND - no queue '{queue}' in vhost '/'", 50, 10)
        assert durable
        return method(channel, "queue.declare-ok", queue, 0, 0)

    async with broker(queue__declare=declare) as it:
        it.outcome = lambda number: "ack"
        report, *_ = await move(sink_to(it))
        assert report.exit_code == 0 and len(it.sent) == 5
        assert [(queue, passive) for queue, passive, _ in known] == [
            ("q.failed", True),
            ("q.failed", False),
            ("q", True),
            ("q", False),
        ]
        assert known[3][2]["x-dead-letter-routing-key"] == "q.failed"
        assert known[3][2]["x-dead-letter-strategy"] == "at-least-once" and known[3][2]["x-queue-type"] == "quorum"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q'"),
        (403, "ACCESS_REFUSED - configure access to queue 'q' refused for user 'guest'"),
    ],
)
@run
async def test_a_queue_that_is_there_and_cannot_be_declared_is_used_as_it_is(code, text, caplog):

    def declare(channel: int, _: int, queue: str, passive: bool, *rest: Any) -> bytes:
        if passive:
            return method(channel, "queue.declare-ok", queue, 0, 0)
        return method(channel, "channel.close", code, text, 50, 10)

    async with broker(queue__declare=declare) as it:
        it.outcome = lambda number: "ack"
        report, *_ = await move(sink_to(it))
        assert report.exit_code == 0 and len(it.sent) == 5
        assert f"queue q is used as it is: {text}" in caplog.text and "secret" not in caplog.text


@run
async def test_a_queue_that_is_not_to_be_made():
    text = "NOT_FOUND - no queue 'q' in vhost '/'"
    async with broker(queue__declare=lambda channel, *_: method(channel, "channel.close", 404, text, 50, 10)) as it:
        report, *_ = await move(sink_to(it, "queue=q&declare=no"))
        assert report.exit_code == 4 and report.error.endswith(text)
        assert report.counts.unfinished == report.counts.read and it.sent == []  # it may end before any is read
        assert "secret" not in report.error


@run
async def test_what_a_full_queue_refuses_is_published_again():
    async with broker() as it:
        it.outcome = lambda number: "nack" if number in (1, 3, 6) else "ack"
        report, failed, _ = await move(sink_to(it))
        assert report.exit_code == 0 and report.counts.continued == 5 and report.counts.in_doubt == 0 and not failed
        assert len(it.sent) == 8 and sorted(set(mimes(it))) == MAILS


@run
async def test_what_was_on_the_way_is_published_again_under_the_same_id():
    async with broker() as it:
        it.outcome = lambda number: None if number < 5 else "close" if number == 5 else "ack"
        report, failed, gateway = await move(sink_to(it))
        assert report.exit_code == 0 and report.counts.continued == 5 and not failed
        assert report.counts.in_doubt == len(it.sent) - 5 > 0
        ids = [decode_properties(properties).message_id for properties, _ in it.sent]
        assert len(set(ids)) == 5 and set(ids[5:]) <= set(ids[:5])
        assert gateway.sink.figures()["amqp_out"]["reconnects"] == 1


@run
async def test_what_goes_to_no_queue_ends_the_run():
    async with broker() as it:
        it.outcome = lambda number: "returned" if number == 2 else "ack"
        report, failed, _ = await move(sink_to(it))
        assert report.exit_code == 4 and report.error.endswith("its messages go to no queue (312 NO_ROUTE)")
        assert report.counts.continued + report.counts.unfinished == 5 and report.counts.unfinished > 0 and not failed


@pytest.mark.parametrize(("outcome", "code", "doubts"), [("nack", 452, 0), ("close", 451, 5)])
@run
async def test_a_client_that_waits_is_told(outcome, code, doubts):
    async with broker() as it:
        it.outcome = lambda number: outcome
        source = WaitingSource()
        report, _, _ = await move(sink_to(it), source)
        assert (
            report.counts.continued == 0 and report.counts.in_doubt <= doubts and (report.counts.in_doubt > 0) == (doubts > 0)
        )
        assert {verdict.reply.code for verdict in source.verdicts} == {code}


@run
async def test_a_client_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.publisher.PATIENCE", 0.05)
    blocked = lambda channel, *_: method(channel, "confirm.select-ok") + method(0, "connection.blocked", "low on memory")  # noqa: E731
    async with broker(confirm__select=blocked) as it:
        source = WaitingSource()
        report, _, _ = await move(sink_to(it), source)
        assert {verdict.reply.code for verdict in source.verdicts} == {451} and report.counts.continued == 0


@run
async def test_a_broker_that_takes_nothing_for_a_while():
    async with broker() as it:

        async def during(gateway: Gateway) -> None:
            await it.until(lambda: it.sent)
            it.say(method(0, "connection.blocked", "low on memory"))
            it.say(method(0, "connection.unblocked") + method(3, "basic.ack", 0, True))

        it.outcome = lambda number: None if number < 5 else "ack"
        report, *_ = await move(sink_to(it), during=during)
        assert report.exit_code == 0 and report.counts.continued == 5


BLOCKED = method(0, "connection.blocked", "low on memory")


@run
async def test_a_run_that_is_stopped_does_not_wait_for_a_broker():
    """Nothing was published, so nothing is in doubt."""
    async with broker(confirm__select=lambda channel, *_: method(channel, "confirm.select-ok") + BLOCKED) as it:

        async def during(gateway: Gateway) -> None:
            await until(lambda: gateway.sink.figures()["amqp_out"]["blocked"])
            await until(lambda: gateway.in_flight == 5)
            gateway.stop()

        report, failed, _ = await move(sink_to(it), during=during)
        assert report.counts.unfinished == 5 and report.counts.in_doubt == 0 and not failed and it.sent == []


@run
async def test_a_run_that_is_stopped_does_not_wait_for_a_full_queue(monkeypatch):
    monkeypatch.setattr("mqcore.mail.amqp.publisher.FIRST_PAUSE", 1000.0)
    async with broker() as it:

        async def during(gateway: Gateway) -> None:
            await until(lambda: gateway.sink.figures()["amqp_out"]["confirms"] == {"nack": 5})
            gateway.stop()

        it.outcome = lambda number: "nack"
        report, *_ = await move(sink_to(it), during=during)
        assert report.counts.unfinished == 5 and report.counts.in_doubt == 0


@run
async def test_a_mail_that_is_too_large():
    async with broker() as it:
        it.outcome = lambda number: "ack"
        report, failed, _ = await move(sink_to(it, "queue=q&max-message=1024"), ListSource([*MAILS, bytes(2000)], "a@b", "c@d"))
        assert report.counts.rejected == 1 and report.counts.continued == 5
        assert [mail.mime for mail in failed] == [bytes(2000)]


@run
async def test_a_mail_that_is_too_large_for_the_broker():
    """It says so by closing the channel, with all that was on the way."""
    text = "PRECONDITION_FAILED - message size 2345 is larger than configured max size 1000"
    async with broker() as it:
        it.outcome = lambda number: "ack"
        settle = it.settle

        def close_channel(channel, content, writer):
            if content.size > 1000:
                writer.write(method(channel, "channel.close", 406, text, 60, 40))
            else:
                settle(channel, content, writer)

        it.settle = close_channel
        report, failed, _ = await move(sink_to(it), ListSource([*MAILS, b"x" * 2000], "a@b", "c@d"))
        assert report.exit_code in (0, 1) and report.counts.continued == 5 and len(failed) == 1
        assert sum(len(body) > 1000 for _, body in it.sent) == 1


@run
async def test_what_a_plugin_put_into_json_and_cannot_be_written():
    async with broker() as it:
        it.outcome = lambda number: "ack"
        plugins = mqcore.Plugins()

        def in_message(context: Any, mail: Mail) -> bool:
            if mail.mime == MAILS[2]:
                mail.json["odd"] = object()
            return False

        plugins.add("10-odd", SimpleNamespace(mq_smtp_in_message=in_message))
        failed = ListSink()
        sink = sink_to(it)
        with contextlib.closing(sink), mqcore.Dispatcher(plugins) as dispatcher:
            gateway = Gateway(dispatcher, ListSource(MAILS, "a@b", "c@d"), sink, FailedSink(failed, "list:"))
            report = await gateway.run()
        assert report.counts.failed == 1 and report.counts.continued == 4 and [mail.mime for mail in failed.mails] == [MAILS[2]]


@run
async def test_a_login_that_is_refused():
    refuse = method(0, "connection.close", 403, "ACCESS_REFUSED - Login was refused", 0, 0)
    async with broker(connection__start_ok=lambda *_: refuse) as it:
        report, *_ = await move(sink_to(it))
        assert report.exit_code == 4 and "ACCESS_REFUSED - Login was refused" in report.error and "secret" not in report.error


@run
async def test_a_second_run_publishes_what_the_first_did_not(tmp_path):
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(b"From a@b Tue Nov 24 05:31:47 2026\n%b\n" % mail for mail in MAILS))
    async with broker() as it:
        it.outcome = lambda number: "returned" if number > 3 else "ack"
        first, *_ = await move(sink_to(it, source=path), MboxSource(str(path)))
        assert first.exit_code == 4 and 0 < first.counts.continued < 5
        it.outcome = lambda number: "ack"
        it.sent.clear()
        second, *_ = await move(sink_to(it, source=path), MboxSource(str(path)))
        assert second.exit_code == 0 and second.counts.present == first.counts.continued
        assert len(it.sent) == 5 - first.counts.continued


# URLs


def test_urls():
    url = parse(
        "amqp", "//me:p%40ss@mq.example/mails?queue=in%20box&exchange=x&declare=no&format=mime&max-message=2048&heartbeat=5"
    )
    assert (url.host, url.port, url.vhost, url.queue, url.user, url.password) == (
        "mq.example",
        5672,
        "mails",
        "in box",
        "me",
        "p@ss",
    )
    assert (url.exchange, url.declares, url.raw, url.max_message, url.heartbeat) == ("x", False, True, 2048, 5)
    assert str(url) == "amqp://mq.example:5672/mails?exchange=x&queue=in%20box" and "p@ss" not in repr(url)
    for path in ("//a:b@[::1]?queue=q", "//a:b@[::1]/?queue=q", "//a:b@[::1]/%2F?queue=q"):
        url = parse("amqps", path)
        assert (url.host, url.port, url.vhost, str(url)) == ("::1", 5671, "/", "amqps://[::1]:5671?queue=q")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", "it can be"),
        ("//", "write it as amqp://USER:PASS@HOST:PORT/VHOST?queue=NAME"),
        ("//me:topsecret@host", "write it as"),
        ("//me:topsecret/x@host?queue=q", "write it as"),
        ("//me:12?topsecret@host?queue=q", "write it as"),
        ("//me:12/topsecret@host?queue=q", "write it as"),
        ("//me:12#topsecret@host?queue=q", "write it as"),
        ("//me:topsecret@host:99999?queue=q", "the port can be 1 to 65535, not 99999"),
        ("//me:topsecret@host:x?queue=q", "write it as"),
        ("//me:topsecret@host?queue=", "which queue? write it as ?queue=NAME"),
        ("//me:topsecret@host?", "'' is no parameter of --to amqp:; there are queue, exchange"),
        ("//me:topsecret@host?queue=q&colour=red", "'colour' is no parameter"),
        ("//me:topsecret@host?queue=q&queue=r", "'queue' is there twice"),
        ("//me:topsecret@host?queue=q&declare=yes", "declare can be quorum or no, not 'yes'"),
        ("//me:topsecret@host?queue=q&format=xml", "format can be json or mime, not 'xml'"),
        ("//me:topsecret@host?queue=q&heartbeat=0", "heartbeat can be 1 to 3600, not '0'"),
        ("//me:topsecret@host?queue=q&max-message=1e9", "max-message can be 1024 to 536870912, not '1e9'"),
        ("//me:topsecret@host?queue=" + "x" * 250, "too long: AMQP has room for 248 octets"),
        ("//me:topsecret@host?queue=%FF", "its queue is no text"),
        ("//me:topsecret@host?queue=a%0Ab", "its queue is no text"),
        ("//topsecret@host?queue=q", "a login is USER:PASS@"),
        ("//:topsecret@host?queue=q", "a login is USER:PASS@"),
        ("//me:%FFtopsecret@host?queue=q", "its password is no text"),
    ],
)
def test_urls_that_are_none(path, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_sink(f"amqp:{path}")
    assert text in str(caught.value) and "topsecret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_password_is_never_shown():
    for url in ("smtp://me:topsecret@host:25", "amqp://me:top/secret@host?queue=q", "amqp://me:top@secret@host?queue=q"):
        with contextlib.suppress(ValueError):
            assert "secret" not in str(parse_sink(url))
        assert "secret" not in without_login(url) and without_login(url).endswith(url.rpartition("@")[2])
    with pytest.raises(ValueError, match="is no sink") as caught:
        parse_sink("rabbit://me:topsecret@host")
    assert "topsecret" not in str(caught.value)
    assert without_login("maildir:/a@b") == "maildir:/a@b"


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("//host?queue=q", {}),
        ("//me:secret@host?queue=q", {"credentials": "x"}),
        ("//host?queue=q", {"credentials": "x", "credentials_env": True}),
    ],
)
def test_one_login(path, given):
    with pytest.raises(
        ValueError, match="needs one login: USER:PASS@ before its host, --credentials FILE or --credentials-env"
    ):
        AmqpSink.check(path, given)


def test_credentials_that_cannot_be_read(tmp_path):
    with pytest.raises(SinkError, match="cannot read"):
        AmqpSink("//host?queue=q", credentials=str(tmp_path / "none"))


# Clients of a server whose sink it is


@run
async def test_a_broker_that_takes_nothing_is_told_of_at_mail(monkeypatch):
    async with broker() as it:
        it.outcome = lambda number: "ack"
        async with smtp_serving(sink=sink_to(it), one_recipient=True) as serving:
            client = await serving.greeted()
            await it.until(lambda: "confirm.select" in it.names)
            await it.until(lambda: it.writers)
            it.say(BLOCKED)
            await serving.until(lambda: serving.gateway.sink.figures()["amqp_out"]["blocked"])
            assert await client.asks(b"MAIL FROM:<a@b>\r\n", 1) == ["452 4.3.1"]
            it.say(method(0, "connection.unblocked"))
            await serving.until(lambda: not serving.gateway.sink.figures()["amqp_out"]["blocked"])
            assert await client.asks(b"MAIL FROM:<a@b>\r\n", 1) == ["250 2.1.0"]
    assert serving.gateway.report.refusals[("mailfrom", 452)] == 1


@run
async def test_the_size_that_a_server_announces_is_what_the_queue_takes():
    async with broker() as it, smtp_serving(sink=sink_to(it, "queue=q&max-message=2100"), one_recipient=True) as serving:
        client = await serving.connect()
        await client.reply()
        assert "250-SIZE 2000" in (await client.ask(b"EHLO client\r\n")).splitlines()
