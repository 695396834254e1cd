"""From SMTP clients to the next server: its answers are the client's, and nothing is stored in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from mail_tools import untraced
from sending_tools import DROP, SILENCE, STAGES, NextServer, next_server
from smtp_tools import OPEN, Serving, codes, run, serving

from mqcore.mail.smtp.sink import SmtpSink

TEXT = b"Subject: hello\r\n\r\nhello\r\n"
MESSAGE = TEXT + b".\r\n"
MAIL, RCPT = b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<%b@example.org>\r\n"


@contextlib.asynccontextmanager
async def relaying(server: NextServer, plugins=None, *, mixed: bool = False, **options):
    sink = SmtpSink(f"//127.0.0.1:{server.port}")
    async with serving(plugins, sink=sink, mixed=mixed, one_recipient=not mixed, **options) as it:
        yield it


async def answer(it: Serving, *recipients: bytes) -> str:
    """What a client is told that sends a message to them."""
    client = await it.greeted()
    await client.asks(MAIL + b"".join(RCPT % recipient for recipient in recipients) + b"DATA\r\n", len(recipients) + 2)
    return await client.ask(MESSAGE)


def sent(server: NextServer) -> list[tuple[str, list[str], bytes]]:
    """What the next server has got, without the trace."""
    return [(sender, recipients, text) for sender, recipients, content in server.mails for text in untraced([content])]


def counts(it: Serving) -> dict[str, int]:
    names = ("continued", "failed", "rejected", "unfinished", "in_doubt", "unanswered")
    return {name: count for name in names if (count := getattr(it.gateway.report.counts, name))}


@run
async def test_a_mail():
    async with next_server() as server, relaying(server) as it:
        client = await it.opened()
        assert codes([await client.ask(MESSAGE)]) == ["250 2.6.0"]
        assert sent(server) == [("a@example.org", ["b@example.org"], TEXT)]
    assert counts(it) == {"continued": 1}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("250 2.0.0 Ok: queued as 4F2B1", "250 2.6.0 passed on: 250 2.0.0 Ok: queued as 4F2B1"),
        ("250-2.0.0 well\r\n250 2.0.0 done", "250 2.6.0 passed on: 250 2.0.0 well 2.0.0 done"),
        ("250 \xff\x07 \x85", "250 2.6.0 passed on: 250 ?? ?"),
        ("250 " + "x" * 400 + "\xe9" * 200, "250 2.6.0 passed on: 250 " + "x" * 400 + "?" * 85),
    ],
)
@run
async def test_the_client_is_told_what_the_next_server_said(said, told):
    """In ASCII, and in a line that is no longer than SMTP allows."""
    async with next_server({"message": [said]}) as server, relaying(server) as it:
        client = await it.opened()
        assert await client.ask(MESSAGE) == told
        assert len(told) <= 510


@run
async def test_250_comes_after_the_next_servers_250():
    async with next_server({"message": [SILENCE]}) as server, relaying(server) as it:
        client = await it.opened()
        client.send(MESSAGE)
        await server.silent.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.reader.read(1)
        server.speak.set()
        assert codes([await client.reply()]) == ["250 2.6.0"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("said", ["450 4.2.1 not now", "552 5.2.2 mailbox full", "550-5.7.1 not\r\n550 5.7.1 you"])
@run
async def test_a_refusal_is_passed_on_at_once(stage, mixed, said):
    async with next_server({stage: [said]}) as server, relaying(server, mixed=mixed) as it:
        client = await it.opened()
        assert await client.ask(MESSAGE) == ("550 5.7.1 not 5.7.1 you" if "550" in said else said)
        assert server.mails == [] and it.failed.mails == []
        assert codes([await client.ask(MAIL)]) == ["250 2.1.0"]
    assert counts(it) == {"rejected": 1}


@pytest.mark.parametrize("stage", ["greeting", "ehlo", *STAGES])
@pytest.mark.parametrize("said", ["421 4.3.2 going", DROP])
@run
async def test_a_connection_that_breaks_is_temporary_and_not_the_clients(stage, said):
    async with next_server({stage: [said] * 2}) as server, relaying(server) as it:
        client = await it.opened()
        assert (await client.ask(MESSAGE)).startswith("451 4.")
        assert await client.ask(b"NOOP\r\n") == "250 2.0.0 ok"
        assert server.mails == []
    assert counts(it) == {"rejected": 1} | ({"in_doubt": 1} if (stage, said) == ("message", DROP) else {})


@pytest.mark.parametrize("stage", ["greeting", *STAGES])
@pytest.mark.parametrize("said", ["what?", "HTTP/1.1 400 Bad Request", "\u0662\u0665\u0660 ok"])
@run
async def test_a_next_server_that_does_not_speak_smtp(stage, said):
    async with next_server({stage: [said] * 2}) as server, relaying(server) as it:
        client = await it.opened()
        reply = await client.ask(MESSAGE)
        who = "cannot reach the next server" if stage == "greeting" else "the next server failed"
        assert reply.startswith(f"451 4.4.2 {who}: this is no reply of SMTP: ") and "(" not in reply
        assert server.mails == []


@run
async def test_no_next_server(caplog):
    async with next_server() as server, relaying(server) as it:
        await server.stop()
        client = await it.opened()
        reply = await client.ask(MESSAGE)
        assert reply == "451 4.4.2 cannot reach the next server: Connection refused"
        await server.start()
        client.send(OPEN.partition(b"\r\n")[2])
        assert codes([await client.reply() for _ in range(3)]) == ["250 2.1.0", "250 2.1.5", "354"]
        assert codes([await client.ask(MESSAGE)]) == ["250 2.6.0"]
    assert f"cannot reach smtp://127.0.0.1:{server.port}: Connection refused" in caplog.text


@run
async def test_many_recipients_need_a_place_for_those_whom_the_next_server_refuses_later():
    async with next_server() as server:
        with pytest.raises(ValueError, match="may take a mail for some of its recipients only"):
            async with serving(sink=SmtpSink(f"//127.0.0.1:{server.port}")):
                pass


# Many recipients


@run
async def test_one_transaction_for_all_recipients():
    async with next_server() as server, relaying(server, mixed=True) as it:
        assert codes([await answer(it, b"b", b"c", b"b")]) == ["250 2.6.0"]
        assert sent(server) == [("a@example.org", ["b@example.org", "c@example.org"], TEXT)]
    assert counts(it) == {"continued": 2}


@run
async def test_those_whom_the_next_server_refuses_are_put_aside():
    async with next_server({"no@example.org": ["550 5.1.1 no"]}) as server, relaying(server, mixed=True) as it:
        assert codes([await answer(it, b"b", b"no", b"c")]) == ["250 2.6.0"]
        assert sent(server) == [("a@example.org", ["b@example.org", "c@example.org"], TEXT)]
        assert [mail.recipient for mail in it.failed.mails] == ["no@example.org"]
    assert counts(it) == {"continued": 2, "rejected": 1}


@run
async def test_nothing_is_sent_while_one_has_a_temporary_error():
    async with next_server({"later@example.org": ["450 4.2.0 later"]}) as server, relaying(server, mixed=True) as it:
        assert await answer(it, b"b", b"no", b"later") == "450 4.2.0 later"
        assert server.seen == [] and it.failed.mails == []
        assert server.commands.count("RSET") == 1
    assert counts(it) == {"rejected": 1, "unfinished": 2}


@run
async def test_all_are_refused():
    script = {"b@example.org": ["550 5.1.1 no"], "c@example.org": ["553 5.1.3 neither"]}
    async with next_server(script) as server, relaying(server, mixed=True) as it:
        assert await answer(it, b"b", b"c") == "550 5.1.1 no"
        assert server.seen == [] and it.failed.mails == []
    assert counts(it) == {"rejected": 2}


@run
async def test_what_plugins_and_the_next_server_refuse():
    def hook(context, message):
        if message.recipient.startswith("no"):
            message.reject(550, "5.7.0 a plugin says no")

    for stage in ("mq_smtp_in_message", "mq_smtp_out_data"):
        script = {"b@example.org": ["550 5.1.1 no"]}
        plugins = {"10-no": SimpleNamespace(**{stage: hook})}
        async with next_server(script) as server, relaying(server, plugins, mixed=True) as it:
            assert await answer(it, b"no", b"b") == "550 5.7.0 a plugin says no"
            assert codes([await answer(it, b"no", b"b")]) == ["250 2.6.0"]
            assert [to for _, to, _ in server.mails] == [["b@example.org"]]
            assert [mail.recipient for mail in it.failed.mails] == ["no@example.org"]
        assert counts(it) == {"continued": 1, "rejected": 3}


@run
async def test_a_plugin_that_fails_what_goes_out():
    def hook(context, message):
        if message.recipient.startswith("c"):
            raise ValueError("a bug")

    async with (
        next_server() as server,
        relaying(server, {"10-bug": SimpleNamespace(mq_smtp_out_data=hook)}, mixed=True) as it,
    ):
        assert await answer(it, b"b", b"c") == "451 4.3.0 this server has a problem; try again later"
        assert not any(command.startswith("MAIL") for command in server.commands)
    assert counts(it) == {"failed": 1, "unfinished": 1}


@pytest.mark.parametrize("said", ["452 4.5.3 no more", "452 Too many recipients"])
@run
async def test_a_server_that_takes_so_many_recipients_at_a_time(said):
    script = {"rcptto": ["250 ok", "250 ok", said, "250 ok", said]}
    async with next_server(script) as server, relaying(server, mixed=True) as it:
        assert codes([await answer(it, *(b"%d" % number for number in range(5)))]) == ["250 2.6.0"]
        assert [[address[0] for address in to] for _, to, _ in server.mails] == [["0", "1"], ["2"], ["3", "4"]]
    assert counts(it) == {"continued": 5}


@run
async def test_a_server_that_takes_no_recipients():
    async with next_server({"rcptto": ["452 4.5.3 no more"]}) as server, relaying(server, mixed=True) as it:
        assert await answer(it, b"b", b"c") == "452 4.5.3 no more"
    assert counts(it) == {"rejected": 2}


def signs(context, message):
    message.mime = message.recipient.encode() + b"\r\n" + message.mime


@run
async def test_what_differs_from_recipient_to_recipient_is_sent_to_each():
    async with next_server() as server:
        async with relaying(server, {"10-sign": SimpleNamespace(mq_smtp_out_data=signs)}, mixed=True) as it:
            assert codes([await answer(it, b"b", b"c")]) == ["250 2.6.0"]
        assert [(to, content.partition(b"\r\n")[0]) for _, to, content in server.mails] == [
            (["b@example.org"], b"b@example.org"),
            (["c@example.org"], b"c@example.org"),
        ]


@pytest.mark.parametrize("said", ["450 4.2.0 later", "550 5.1.1 no", DROP])
@run
async def test_once_something_is_delivered_the_rest_is_put_aside(said):
    """The client must not send it again, as the first recipient would have it twice."""
    script = {"message": ["250 ok", said, "250 ok"]}
    async with (
        next_server(script) as server,
        relaying(server, {"10-sign": SimpleNamespace(mq_smtp_out_data=signs)}, mixed=True) as it,
    ):
        assert codes([await answer(it, b"b", b"c", b"d")]) == ["250 2.6.0"]
        assert [to for _, to, _ in server.mails] == [["b@example.org"], ["d@example.org"]]
        assert [mail.recipient for mail in it.failed.mails] == ["c@example.org"]
    assert counts(it) == {"continued": 2, "rejected": 1} | ({"in_doubt": 1} if said == DROP else {})


@run
async def test_if_the_first_is_not_delivered_nothing_is():
    async with (
        next_server({"message": ["450 4.2.0 later"]}) as server,
        relaying(server, {"10-sign": SimpleNamespace(mq_smtp_out_data=signs)}, mixed=True) as it,
    ):
        assert await answer(it, b"b", b"c") == "450 4.2.0 later"
        assert len(server.seen) == 1 and it.failed.mails == []
    assert counts(it) == {"rejected": 1, "unfinished": 1}


@run
async def test_more_recipients_by_a_plugin_and_no_place_for_those_that_are_refused():
    def more(context, message):
        message.recipients = [message.recipient, "no@example.org"]

    async with (
        next_server({"no@example.org": ["550 5.1.1 no"]}) as server,
        relaying(server, {"10-more": SimpleNamespace(mq_smtp_in_message=more)}) as it,
    ):
        assert await answer(it, b"b") == "550 5.1.1 no"
        assert server.seen == []
        assert codes([await answer(it, b"b")]) == ["250 2.6.0"]
        assert [to for _, to, _ in server.mails] == [["b@example.org", "no@example.org"]]


@run
async def test_a_place_for_failed_mails_that_breaks_after_the_next_server_took_a_part():
    """The client must come again for those who were refused, and the others have it twice."""
    async with next_server({"no@example.org": ["550 5.1.1 no"]}) as server, relaying(server, mixed=True) as it:
        it.failed.error = "no space"
        assert codes([await answer(it, b"b", b"no", b"c")]) == ["451 4.3.0"]
        assert len(server.mails) == 1
        await it.until(lambda: it.gateway.report.error == "no space")
    assert counts(it) == {"unfinished": 3, "in_doubt": 2}


@run
async def test_the_same_with_recipients_that_a_plugin_added():
    def more(context, message):
        message.recipients = [message.recipient, "no@example.org"]

    plugins = {"10-more": SimpleNamespace(mq_smtp_in_message=more)}
    async with next_server({"no@example.org": ["550 5.1.1 no"]}) as server, relaying(server, plugins, mixed=True) as it:
        it.failed.error = "no space"
        assert codes([await answer(it, b"b")]) == ["451 4.3.0"]
        assert [to for _, to, _ in server.mails] == [["b@example.org"]]
    assert counts(it) == {"unfinished": 1, "in_doubt": 1}


# Anything


@pytest.mark.parametrize("seed", range(10))
@run
async def test_whatever_the_next_server_does(seed):
    """Whoever got 250 has delivered or put aside all; what is there twice was in doubt; connections are not mixed up."""
    chance = random.Random(seed)
    says = ["450 4.0.0 later", "550 5.0.0 no", "421 4.3.2 going", "452 4.5.3 too many", "gibberish", DROP]
    stages = ("greeting", "ehlo", *STAGES)
    usual = {"data": "354 go on", "ehlo": "250 next.example", "greeting": "220 next.example"}
    script = {
        stage: [chance.choice(says) if chance.random() < 0.15 else usual.get(stage, "250 ok") for _ in range(1000)]
        for stage in stages
    }
    delivered_twice = 0
    async with next_server(script) as server, relaying(server, mixed=True) as it:

        async def send(number: int) -> None:
            recipients = [b"%d-%d" % (number, which) for which in range(chance.randrange(1, 4))]
            wanted = {f"{recipient.decode()}@example.org" for recipient in recipients}
            for _ in range(1000):
                if (await answer(it, *recipients)).startswith("250 "):
                    break
            aside = {mail.recipient for mail in it.failed.mails}
            assert wanted <= aside | {to for _, all_to, _ in server.mails for to in all_to}

        await asyncio.gather(*(send(number) for number in range(40)))
        received = Counter(to for _, all_to, _ in server.mails for to in all_to)
        delivered_twice = sum(received.values()) - len(received)
        assert all(content == TEXT for content in untraced(server.seen))
    assert delivered_twice <= counts(it).get("in_doubt", 0)


# Clients that go away, and the end


@run
async def test_a_client_that_goes_away_before_its_mail_goes_out():
    held = []

    def hold(context, message):
        held.append(message)
        return True

    async with next_server() as server, relaying(server, {"10-hold": SimpleNamespace(mq_smtp_out_data=hold)}) as it:
        client = await it.opened()
        client.send(MESSAGE)
        await it.until(lambda: held)
        client.leave()
        await it.until(lambda: it.gateway.report.counts.unfinished)
        assert not any(command.startswith("MAIL") for command in server.commands)
    assert counts(it) == {"unfinished": 1}


@run
async def test_a_client_that_goes_away_while_its_mail_goes_out():
    async with next_server({"message": [SILENCE]}) as server, relaying(server) as it:
        client = await it.opened()
        client.send(MESSAGE)
        await server.silent.wait()
        client.leave()
        await it.until(lambda: not it.server.host.connections)
        server.speak.set()
        await it.until(lambda: it.gateway.report.counts.stored)
        assert len(server.mails) == 1
    assert counts(it) == {"continued": 1, "unanswered": 1}


@run
async def test_stopped_while_a_mail_goes_out():
    async with next_server({"message": [SILENCE]}) as server, relaying(server) as it:
        client = await it.opened()
        client.send(MESSAGE)
        await server.silent.wait()
        it.gateway.stop()
        await asyncio.sleep(0.01)
        server.speak.set()
        assert codes([await client.reply(), await client.reply()]) == ["250 2.6.0", "421 4.3.2"]
    assert counts(it) == {"continued": 1}


@run
async def test_stopped_while_the_next_server_takes_too_long(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.05)
    async with next_server({"message": [SILENCE]}) as server, relaying(server) as it:
        client = await it.opened()
        client.send(MESSAGE)
        await server.silent.wait()
        it.gateway.stop()
        assert codes([await client.reply(), await client.reply()]) == ["451 4.3.0", "421 4.3.2"]
        assert server.mails == []
    assert counts(it) == {"unfinished": 1, "in_doubt": 1}


@pytest.mark.parametrize("stage", ["greeting", "ehlo", *STAGES])
@run
async def test_stopped_when_the_client_is_gone_and_the_next_server_silent(stage, monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.05)
    async with next_server({stage: [SILENCE]}) as server:
        async with relaying(server) as it:
            client = await it.opened()
            client.send(MESSAGE)
            await server.silent.wait()
            client.leave()
            await it.until(lambda: not it.server.host.connections)
            it.gateway.stop()
            await it.until(lambda: not it.gateway.in_flight)
        assert server.mails == []
    assert counts(it) == {"unfinished": 1} | ({"in_doubt": 1} if stage == "message" else {})


# After the reply


class HoldsSent:
    """Holds what is sent until it is told otherwise."""

    def __init__(self) -> None:
        self.held: list[tuple[object, object]] = []

    def mq_smtp_out_sent(self, context, message):
        self.held.append((context, message))
        message.reject(550, "too late")
        return True

    def release(self) -> None:
        while self.held:
            context, message = self.held.pop()
            context.continue_(message)


@run
async def test_no_client_waits_for_what_is_done_after_its_mail_is_sent():
    holds = HoldsSent()
    async with next_server() as server, relaying(server, {"10-hold": holds}, max_in_flight=1) as it:
        client = await it.opened()
        assert codes([await client.ask(MESSAGE)]) == ["250 2.6.0"]
        await it.until(lambda: holds.held)
        client.leave()
        other = await it.opened()
        other.send(MESSAGE)
        for _ in range(10):
            await asyncio.sleep(0)
        assert it.gateway.in_flight == 1 and len(server.mails) == 1  # or there would be no end to what plugins hold
        holds.release()
        assert codes([await other.reply()]) == ["250 2.6.0"]
        await it.until(lambda: holds.held)
        holds.release()
    assert counts(it) == {"continued": 2}


@run
async def test_what_is_done_after_a_mail_is_sent_ends_with_the_run(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.02)
    holds = HoldsSent()
    async with next_server() as server, relaying(server, {"10-hold": holds}) as it:
        client = await it.opened()
        assert codes([await client.ask(MESSAGE)]) == ["250 2.6.0"]
        await it.until(lambda: holds.held)
    assert counts(it) == {"continued": 1}


@run
async def test_what_fails_after_a_mail_is_sent_is_logged(caplog):
    def fails(context, message):
        raise ValueError("a bug")

    plugins = {"10-fails": SimpleNamespace(mq_smtp_out_sent=fails)}
    async with next_server({"message": ["550 5.7.1 no"]}) as server, relaying(server, plugins) as it:
        client = await it.opened()
        assert await client.ask(MESSAGE) == "550 5.7.1 no"
    assert "a bug" in caplog.text and counts(it) == {"rejected": 1}
