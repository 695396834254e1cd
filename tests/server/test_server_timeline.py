"""`trace` of the control socket: the timeline of a transaction, and that nothing is different for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace

import pytest
from mail_tools import write_mbox
from server_tools import steered
from smtp_tools import ALL, EHLO, MAIL, OPEN, RCPT, TEXT, Holds, ListSink, plugin, run

import mqcore
from mqcore.mail import Connection, Gateway, Mail, MboxSource
from mqcore.mail.timeline import Changes
from mqcore.server.timeline import NextTransaction, lines_of


def tags(context, message):
    message.headers.add("X-Tag", "1")


def waits(context, message):
    context.start_timer(0, context.continue_, message)
    return mqcore.HOLD


def refuses(context, message):
    message.reject(550, "5.7.1 no")


@contextlib.asynccontextmanager
async def tracing(at, **which):
    """Within the block it waits for a transaction; then `answer` of what it gives has it."""
    reader, writer = await at.connect()
    writer.write(json.dumps({"command": "trace", **which}).encode() + b"\n")
    await at.it.until(lambda: at.server.gateway.tracers is not None)

    async def answer():
        answer = json.loads(await asyncio.wait_for(reader.readline(), 60))
        assert answer["ok"], answer
        assert at.server.gateway.tracers is None
        return answer["result"]

    yield answer
    writer.close()


def shown(timeline):
    """As people see it, without times."""
    return [" ".join(line.split()) for line in lines_of(without_times(timeline))]


def without_times(timeline):
    for event in timeline["events"]:
        for call in event.get("calls", ()):
            call["seconds"] = None
            call["held"] = None if call["held"] is None else 0.05
    return timeline


PLUGINS = {
    "10-tag": plugin(message=tags),
    "20-wait": plugin(message=waits),
    "30-no": plugin(message=refuses),
    "40-never": plugin(message=tags),
}


@run
async def test_a_transaction_as_it_is_shown(tmp_path):
    """The form is that of `mqcore try`."""
    async with steered(tmp_path, PLUGINS) as at, tracing(at, peer="127.0.0.1") as answer:
        client = await at.it.opened()
        assert await client.asks(TEXT + b".\r\n", 1) == ["550 5.7.1"]
        timeline = await answer()
        assert (timeline["peer"], timeline["helo"], timeline["end"]) == ("127.0.0.1", "client.example", None)
        lines = list(lines_of(without_times(timeline)))
        assert lines[-6:] == [
            "mq_smtp_in_message  for b@example.org",
            "  10-tag   CONTINUE                          +X-Tag: 1",
            "  20-wait  CONTINUE  held 50 ms",
            "  30-no    COMPLETE                          rejected 550 5.7.1 no",
            "           not called: 40-never",
            "reply 550 5.7.1 no",
        ]
        assert at.it.gateway.report.counts.rejected == 1


@run
async def test_all_stages_from_the_connection_on(tmp_path):
    stages = plugin(connect=lambda *_: False, mailfrom=lambda *_: False, rcptto=lambda *_: False, data=lambda *_: False)
    async with steered(tmp_path, {"10-see": stages, "20-tag": plugin(message=tags)}) as at:
        async with tracing(at, peer="::ffff:127.0.0.1") as answer:
            client = await at.it.connect()
            greeting = await client.reply()
            await client.asks(OPEN, 4)
            reply = await client.ask(TEXT + b".\r\n")
            timeline = await answer()
        assert shown(timeline) == [
            "mq_smtp_in_connect",
            "10-see CONTINUE",
            f"reply {greeting}",
            "mq_smtp_in_mailfrom from a@example.org",
            "10-see CONTINUE",
            "reply 250 2.1.0 sender ok",
            "mq_smtp_in_rcptto for b@example.org",
            "10-see CONTINUE",
            "reply 250 2.1.5 recipient ok",
            "mq_smtp_in_data",
            "10-see CONTINUE",
            "mq_smtp_in_message for b@example.org",
            "20-tag CONTINUE +X-Tag: 1",
            f"reply {reply}",
        ]
        assert b"X-Tag: 1\r\n" in at.it.sink.mails[0].mime
        assert timeline["verdicts"] == ["accepted"]


@run
async def test_the_next_transaction_of_a_connection_by_its_id(tmp_path):
    async with steered(tmp_path, {"10-hold": (holds := Holds("mailfrom"))}) as at:
        client, other = await at.it.greeted(), await at.it.greeted()
        client.send(MAIL)
        await at.it.until(lambda: holds.held)
        id = (await at.ask("held"))["oldest"][0]["id"]
        async with tracing(at, id=id) as answer:
            holds.release()
            assert (await client.reply()).startswith("250")
            other.send(MAIL)
            await at.it.until(lambda: holds.held)
            holds.release()
            assert await client.asks(b"RSET\r\n", 1) == ["250 2.0.0"]
            client.send(MAIL)
            await at.it.until(lambda: holds.held)
            holds.release()
            assert (await client.reply()).startswith("250")
            assert await client.asks(RCPT + b"DATA\r\n", 2) == ["250 2.1.5", "354"]
            assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]
            timeline = await answer()
            assert timeline["id"] == id
            assert [event["hook"] for event in timeline["events"] if "hook" in event] == [
                f"mq_smtp_in_{stage}" for stage in ("mailfrom", "rcptto", "data", "message")
            ]


@run
async def test_several_recipients(tmp_path):
    def refuses_one(context, message):
        if message.recipient == "c@example.org":
            message.reject(550, "5.1.1 unknown")

    async with steered(tmp_path, {"10-some": plugin(message=refuses_one)}, mixed=True) as at:
        async with tracing(at, peer="127.0.0.1") as answer:
            client = await at.it.greeted()
            await client.asks(MAIL + RCPT + b"RCPT TO:<c@example.org>\r\nDATA\r\n", 4)
            assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]
            lines = shown(await answer())
        at_message = lines.index("mq_smtp_in_message for b@example.org")
        assert lines[at_message + 1 : -1] == [
            "10-some CONTINUE",
            "mq_smtp_in_message for c@example.org",
            "10-some COMPLETE rejected 550 5.1.1 unknown",
        ]


@run
async def test_each_reply_of_lmtp(tmp_path):
    async with steered(tmp_path, {"10-tag": plugin(message=tags)}, lmtp=True) as at:
        async with tracing(at, peer="127.0.0.1") as answer:
            client = await at.it.greeted()
            await client.asks(MAIL + RCPT + b"RCPT TO:<c@example.org>\r\nDATA\r\n", 4)
            replies = await client.asks(TEXT + b".\r\n", 2)
            lines = shown(await answer())
        assert replies == ["250 2.6.0"] * 2
        assert [line[:15] for line in lines[-2:]] == ["reply 250 2.6.0"] * 2


@pytest.mark.parametrize("stage", ["connect", "mailfrom"])
@run
async def test_what_is_refused_ends_it(tmp_path, stage):
    async with steered(tmp_path, {"10-no": plugin(**{stage: lambda context, message, *_: refuses(context, message)})}) as at:
        async with tracing(at, peer="127.0.0.1") as answer:
            client = await at.it.connect()
            if stage == "mailfrom":
                await client.reply()
                await client.ask(EHLO)
                client.send(MAIL)
            assert await client.reply() == "550 5.7.1 no"
            lines = shown(await answer())
        assert lines[-2:] == ["10-no COMPLETE rejected 550 5.7.1 no", "reply 550 5.7.1 no"]


@pytest.mark.parametrize("stage", ["rcptto", "data", "message"])
@run
async def test_a_client_that_leaves(tmp_path, stage):
    async with steered(tmp_path, {"10-hold": (holds := Holds(stage))}) as at:
        async with tracing(at, peer="127.0.0.1") as answer:
            client = await at.it.greeted()
            client.send(OPEN.removeprefix(EHLO) + TEXT + b".\r\n")
            await at.it.until(lambda: holds.held)
            client.leave()
            lines = shown(await answer())
        assert lines[-2].startswith("10-hold FAIL held") and "Cancelled: " in lines[-2]
        assert lines[-1].startswith("no reply: ") and "client is gone" in lines[-1]


@run
async def test_who_asked_gives_up(tmp_path):
    async with steered(tmp_path, {"10-tag": plugin(message=tags)}) as at:
        _, writer = await at.connect()
        writer.write(b'{"command": "trace", "peer": "127.0.0.1"}\n')
        await at.it.until(lambda: at.server.gateway.tracers is not None)
        writer.close()
        await at.it.until(lambda: at.server.gateway.tracers is None)
        client = await at.it.opened()
        assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]


@run
async def test_two_who_ask_get_the_same(tmp_path):
    async with steered(tmp_path, {"10-tag": plugin(message=tags)}) as at:
        waiting = [NextTransaction(at.server.gateway, None, "127.0.0.1") for _ in range(2)]
        client = await at.it.opened()
        await client.asks(TEXT + b".\r\n", 1)
        first, second = [await each.ended_with for each in waiting]
        assert first is second


@run
async def test_wrong_requests(tmp_path):
    async with steered(tmp_path) as at:
        assert await at.refused("trace") == ("usage", "trace needs either an id or a peer")
        assert (await at.refused("trace", id="x", peer="127.0.0.1"))[0] == "usage"
        kind, error = await at.refused("trace", peer="mx.example.org")
        assert (kind, error) == ("usage", "peer of trace is wrong: an IP address, as 192.0.2.7 or 2001:db8::7")
        assert at.server.gateway.tracers is None


@run
async def test_no_password_is_told(tmp_path):
    def logs_in(context, message, login, password):
        message.json["password"] = password
        message.connection.authenticated = True

    async with steered(tmp_path, {"10-login": plugin(authenticate=logs_in)}, auth_without_tls=True) as at:
        async with tracing(at, peer="127.0.0.1") as answer:
            client = await at.it.greeted()
            assert await client.asks(b"AUTH PLAIN AGpvZQBzZXNhbWU=\r\n", 1) == ["235 2.7.0"]  # joe, sesame
            await client.asks(ALL.removeprefix(EHLO), 4)
            timeline = await answer()
        assert [event["hook"] for event in timeline["events"] if "hook" in event][1] == "mq_smtp_in_authenticate"
        first = [event for event in timeline["events"] if "hook" in event][1]
        assert "sesame" not in json.dumps(first) and first["calls"][0]["plugin"] == "10-login"


@run
async def test_mails_from_a_mailbox(tmp_path):
    """By their ids; the mails before and after it go the same way as ever."""
    seen = []
    source = MboxSource(str(write_mbox(tmp_path / "box", 5)))
    plugins = mqcore.Plugins()
    plugins.add("10-see", plugin(message=lambda context, message: seen.append(message.origin.id)))
    with mqcore.Dispatcher(plugins) as dispatcher:
        gateway = Gateway(dispatcher, source, ListSink())
        await gateway.run()
    order, ids = list(seen), dict.fromkeys(seen)
    assert len(ids) == 5
    seen.clear()
    with mqcore.Dispatcher(plugins) as dispatcher:
        gateway = Gateway(dispatcher, MboxSource(str(tmp_path / "box")), sink := ListSink())
        waiting = NextTransaction(gateway, order[2], None)
        await gateway.run()
        timeline = (await waiting.ended_with).as_dict()
    assert seen == order and len(sink.mails) == 5
    assert shown(timeline) == ["mq_smtp_in_message", "10-see CONTINUE", "settled: accepted"]


@run
async def test_a_mail_of_a_source_that_does_not_ask_at_mail():
    """It has a connection, but is not asked about before it is offered: as of a milter."""
    gateway = SimpleNamespace(tracers=None)
    waiting = NextTransaction(gateway, None, "192.0.2.7")
    mails = [Mail(b"", connection=Connection(1, peer)) for peer in ("192.0.2.8", "192.0.2.7")]
    mails.append(Mail(b"", connection=Connection(1, "127.0.0.1", forwarded={"addr": "192.0.2.7"})))
    assert gateway.tracers.offered(mails[0]) is None
    timeline = gateway.tracers.offered(mails[1])
    timeline.end()
    assert waiting.ended_with.result() is timeline and gateway.tracers is None
    NextTransaction(gateway, None, "192.0.2.7")
    assert gateway.tracers.offered(mails[2]) is not None


def test_changes():
    mail = Mail(b"Subject: a\r\nX-Old: 1\r\n\r\nbody\r\n", envelope="a@example.org")
    changes = Changes()
    assert changes(mail) == []
    assert changes(mail) == []
    mail.headers.replace("Subject", "b")
    mail.headers.remove("X-Old")
    mail.headers.add("X-Long", "x" * 300)
    mail.envelope = "b@example.org"
    mail.json["score"] = {"spam": 1}
    long = f"+X-Long: {'x' * 192}..."
    assert changes(mail) == [
        "-Subject: a", "-X-Old: 1", long, "+Subject: b", 'envelope: "a@example.org" -> "b@example.org"', '+score: {"spam": 1}',
    ]  # fmt: skip
    mail.mime = mail.mime.replace(b"body", b"another body")
    del mail.json["score"]
    mail.reject(550, "5.7.1 no")
    assert changes(mail) == ["body: 6 -> 14 octets", '-score: {"spam": 1}', "rejected 550 5.7.1 no"]
    mail.rejection = None
    mail.discard()
    assert changes(mail) == ["not rejected any more", "discarded"]
    for number in range(20):
        mail.json[f"key{number}"] = number
    assert changes(mail)[-1] == "and 10 more"
    assert changes(mqcore.Message()) == []


def test_changes_of_odd_values():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    mail = Mail(b"\xff: \xff\r\n\r\n", json={"a": Odd(), 5: 1})
    changes = Changes()
    changes(mail)
    mail.json["a"] = {1: {2: Odd()}}
    loop = mail.json["b"] = []
    loop.append(loop)
    assert changes(mail) == ['a: "<Odd>" -> {"1": {"2": "<Odd>"}}', "+b: <list>"]


def test_lines_are_bounded_and_change_no_terminal():
    call = {"plugin": "10-a", "verdict": "CONTINUE", "seconds": 2.5e-6, "held": 75.25, "changes": ["+a", "+b\n"], "error": "E"}
    step = {"hook": "mq_smtp_in_rcptto", "about": "\x1b[2J", "outcome": "CONTINUE", "error": None, "not_called": []}
    timeline = {
        "events": [step | {"calls": [call]}, {"reply": "250 ok"}],
        "left_out": 3, "end": None, "peer": "192.0.2.7", "verdicts": [],
    }  # fmt: skip
    assert list(lines_of(timeline)) == [
        "mq_smtp_in_rcptto  for \\x1b[2J",
        "  10-a  CONTINUE  2 us, held 75.2 s       +a",
        f"{'':42}+b\\n",
        f"{'':42}E",
        "reply 250 ok",
        "and 3 more steps or calls",
    ]


