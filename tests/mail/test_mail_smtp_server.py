"""The SMTP server on a real socket: stages, what plugins answer at each of them, and recipients."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
from mail_tools import untraced
from smtp_tools import ALL, EHLO, MAIL, OPEN, STAGES, TEXT, Holds, codes, plugin, run, serving

import mqcore
from mqcore.mail.null_sink import NullSink

# Stages


@run
async def test_each_stage_with_its_arguments_in_order():
    seen: list[Any] = []

    def note(stage):
        return lambda context, message, *arguments: seen.append((stage, *arguments))

    stages = ("connect", "secure", "authenticate", *STAGES[1:], "close")
    async with serving({"10-note": plugin(**{stage: note(stage) for stage in stages})}) as it:
        client = await it.greeted()
        assert await client.asks(ALL.removeprefix(EHLO), 4) == ["250 2.1.0", "250 2.1.5", "354", "250 2.6.0"]
        assert await client.ask(b"QUIT\r\n") == "221 2.0.0 bye"
        assert await client.is_closed()
        await it.until(lambda: len(seen) == 6)
    assert seen == [
        ("connect",),
        ("mailfrom", "a@example.org"),
        ("rcptto", "b@example.org"),
        ("data", it.sink.mails[0].origin.mime),
        ("message",),
        ("close",),
    ]


@run
async def test_what_a_plugin_knows_at_each_stage():
    seen: dict[str, Any] = {}

    def note(stage):
        def hook(context, message, *arguments):
            connection = message.connection
            seen[stage] = (connection.peer, connection.helo, connection.tls, connection.authenticated)
            seen[f"{stage} json"] = {**message.json, "recipients": list(message.recipients)}
            seen[f"{stage} mime"] = message.mime
            connection.data.setdefault("stages", []).append(stage)

        return hook

    stages = (*STAGES, "close")
    async with serving({"10-note": plugin(**{stage: note(stage) for stage in stages})}) as it:
        client = await it.greeted()
        await client.asks(ALL.removeprefix(EHLO), 4)
        (mail,) = it.sink.mails
        assert mail.connection.data["stages"] == list(STAGES)
        assert mail.connection.id == 1
    assert seen["connect"] == ("127.0.0.1", None, False, False)
    assert {seen[stage] for stage in stages[1:]} == {("127.0.0.1", "client.example", False, False)}
    assert seen["mailfrom json"] == {"envelope": "a@example.org", "recipients": []}
    assert seen["rcptto json"] == {"envelope": "a@example.org", "recipient": "b@example.org", "recipients": ["b@example.org"]}
    assert seen["data json"] == {"envelope": "a@example.org", "recipients": ["b@example.org"]}
    assert seen["message json"] == {
        "envelope": "a@example.org",
        "recipient": "b@example.org",
        "recipients": ["b@example.org"],
    }
    assert (seen["data mime"], seen["message mime"], seen["close mime"]) == (mail.mime, mail.mime, b"")


@run
async def test_what_is_stored():
    async with serving() as it:
        client = await it.greeted()
        reply = await client.ask(b"NOOP\r\n")
        client.send(ALL.removeprefix(EHLO))
        replies = [await client.reply() for _ in range(4)]
        assert reply == "250 2.0.0 ok"
        (mail,) = it.sink.mails
        assert replies[-1] == f"250 2.6.0 stored as {mail.origin.id}"
        assert (untraced([mail.mime]), mail.envelope, mail.recipients) == ([TEXT], "a@example.org", ["b@example.org"])
        assert mail.origin.recipient == "b@example.org" and mail.origin.received > 1.7e9
        await client.asks(ALL.removeprefix(EHLO), 4)
        assert [mail.origin.place for mail in it.sink.mails] == [1, 2]
        assert it.sink.mails[0].origin.id != it.sink.mails[1].origin.id


@run
async def test_what_plugins_change_at_any_stage():
    def mailfrom(context, message, address):
        message.envelope = f"new-{address}"
        message.json["mine"] = [1]

    def rcptto(context, message, address):
        message.recipient = f"new-{address}"

    def data(context, message, mime):
        message.mime = b"X: 1\r\n" + mime

    async with serving({"10-change": plugin(mailfrom=mailfrom, rcptto=rcptto, data=data)}) as it:
        await (await it.greeted()).asks(ALL.removeprefix(EHLO), 4)
        (mail,) = it.sink.mails
    assert mail.json == {"envelope": "new-a@example.org", "recipient": "new-b@example.org", "mine": [1]}
    assert (mail.mime, untraced([mail.origin.mime])) == (b"X: 1\r\n" + mail.origin.mime, [TEXT])


REPLIES = {"connect": 0, "mailfrom": 2, "rcptto": 3, "data": 5, "message": 5}
"""Which reply to ALL is the answer to each stage, the greeting being the first."""


@run
async def test_a_plugin_that_throws_away_what_is_known_loses_nothing():
    def forget(context, message, *arguments):
        message.json = {}

    forgetful = plugin(mailfrom=forget, rcptto=forget, data=forget)
    async with serving({"10-forget": forgetful}, mixed=True) as it:
        assert (await (await it.greeted()).asks(THREE, 6))[-1] == "250 2.6.0"
        assert [mail.recipient for mail in it.sink.mails] == [f"{name}@example.org" for name in ("one", "two", "three")]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["at once", "held"])
@run
async def test_a_rejection_at_any_stage(stage, how):
    def hook(context, message, *arguments):
        message.reject(550, "5.7.0 I do not like you")
        if how == "held":
            context.start_timer(0.001, context.continue_, message)
            return True
        return mqcore.COMPLETE

    async with serving({"10-no": plugin(**{stage: hook})}) as it:
        client = await it.connect()
        client.send(ALL if REPLIES[stage] == 5 else OPEN)
        replies = [await client.reply() for _ in range(6 if REPLIES[stage] == 5 else 5)]
        assert replies[REPLIES[stage]] == "550 5.7.0 I do not like you"
        assert it.sink.mails == []
        if REPLIES[stage] == 5:
            assert it.gateway.report.counts.rejected == 1
            assert codes([await client.ask(MAIL)]) == ["250 2.1.0"]
        elif stage == "connect":
            assert await client.ask(b"QUIT\r\n") == "221 2.0.0 bye"
            assert await client.is_closed()


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_a_failure_at_any_stage_is_temporary(stage, caplog):
    def hook(context, message, *arguments):
        raise ValueError("a bug")

    async with serving({"10-fail": plugin(**{stage: hook})}) as it:
        client = await it.connect()
        client.send(ALL if REPLIES[stage] == 5 else OPEN)
        replies = [await client.reply() for _ in range(REPLIES[stage] + 1)]
        code = 421 if stage == "connect" else 451
        assert replies[REPLIES[stage]] == f"{code} 4.3.0 this server has a problem; try again later"
        assert it.sink.mails == []
        assert it.gateway.report.counts.failed == (REPLIES[stage] == 5)
    assert "a bug" in caplog.text


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_pipelined_commands_wait_behind_a_held_step(stage):
    holds = Holds(stage)
    async with serving({"10-hold": holds}) as it:
        client = await it.connect()
        client.send(ALL + b"NOOP\r\nQUIT\r\n")
        await it.until(lambda: holds.held)
        for _ in range(REPLIES[stage]):
            await client.reply()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting := asyncio.create_task(client.reply())), 0.05)
        holds.release()
        replies = [await waiting, *[await client.reply() for _ in range(7 - REPLIES[stage])]]
        expected = ["220", "250", "250 2.1.0", "250 2.1.5", "354", "250 2.6.0", "250 2.0.0", "221 2.0.0"]
        assert [reply[:3] for reply in replies] == [code[:3] for code in expected][REPLIES[stage] :]
        assert len(it.sink.mails) == 1


@run
async def test_many_clients_at_once_held_and_not():
    def message(context, mail):
        if mail.connection.id % 2:
            context.start_timer(0.001, context.continue_, mail)
            return True
        return False

    async def talk(it):
        client = await it.greeted()
        for _ in range(20):
            assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"

    async with serving({"10-some": plugin(message=message)}) as it:
        await asyncio.gather(*(talk(it) for _ in range(20)))
        assert len(it.sink.mails) == 400
        assert len({mail.origin.id for mail in it.sink.mails}) == 400


# Recipients

THREE = MAIL + b"".join(b"RCPT TO:<%b@example.org>\r\n" % name for name in (b"one", b"two", b"three")) + b"DATA\r\nx\r\n.\r\n"


def verdicts(**by_name: Any) -> SimpleNamespace:
    """Rejects mails by the names of their recipients: (code, text), or an error to raise."""

    def message(context, mail):
        mail.mime += mail.recipient.encode()
        verdict = by_name.get(mail.recipient.partition("@")[0])
        if isinstance(verdict, Exception):
            raise verdict
        if verdict:
            mail.reject(*verdict)

    return plugin(message=message)


@run
async def test_each_recipient_has_a_mail_of_its_own():
    async with serving({"10-change": verdicts()}, mixed=True) as it:
        assert (await (await it.greeted()).asks(THREE, 6))[-1] == "250 2.6.0"
        assert untraced(mail.mime for mail in it.sink.mails) == [b"x\r\n%b@example.org" % n for n in (b"one", b"two", b"three")]
        assert len({mail.origin.id for mail in it.sink.mails}) == 3


@run
async def test_what_plugins_keep_in_the_json_is_not_shared():
    def mailfrom(context, message, address):
        message.json["list"] = []

    def message(context, mail):
        mail.json["list"].append(mail.recipient)

    async with serving({"10-json": plugin(mailfrom=mailfrom, message=message)}, mixed=True) as it:
        await (await it.greeted()).asks(THREE, 6)
        assert [len(mail.json["list"]) for mail in it.sink.mails] == [1, 1, 1]


@run
async def test_a_json_of_a_class_of_its_own_stays_one():
    def data(context, message, mime):
        message.json = OrderedDict(message.json, mine=1)

    async with serving({"10-json": plugin(data=data)}, mixed=True) as it:
        await (await it.greeted()).asks(THREE, 6)
        assert [type(mail.json) for mail in it.sink.mails] == [OrderedDict] * 3
        assert [list(mail.json) for mail in it.sink.mails] == [["envelope", "mine", "recipient"]] * 3


@pytest.mark.parametrize(
    ("by_name", "reply", "stored", "set_aside"),
    [
        ({"two": (550, "no such user")}, "250 2.6.0", 2, 1),
        ({"one": (550, "no"), "two": (554, "no"), "three": (550, "no")}, "550 5.7.1", 0, 0),
        ({"two": (450, "later")}, "450 4.7.1", 0, 0),
        ({"one": (550, "no"), "three": (450, "later")}, "450 4.7.1", 0, 0),
        ({"two": ValueError("a bug")}, "451 4.3.0", 0, 0),
        ({"one": (550, "no"), "two": ValueError("a bug")}, "451 4.3.0", 0, 0),
        ({"one": (421, "go away")}, "421 4.7.1", 0, 0),
    ],
)
@run
async def test_verdicts_that_differ(by_name, reply, stored, set_aside):
    async with serving({"10-mixed": verdicts(**by_name)}, mixed=True) as it:
        assert (await (await it.greeted()).asks(THREE, 6))[-1] == reply
        assert (len(it.sink.mails), len(it.failed.mails)) == (stored, set_aside)
        for mail in it.failed.mails:
            assert (untraced([mail.mime]), mail.recipient) == ([b"x\r\n"], "two@example.org")


@pytest.mark.parametrize("count", [100, 1000])
@run
async def test_many_recipients_without_a_place_for_rejected_mails(count):
    """RFC 5321, 4.5.3.1.8: at least 100."""
    rcpt = b"".join(b"RCPT TO:<%d@example.org>\r\n" % number for number in range(count))
    async with serving() as it:
        client = await it.greeted()
        replies = await client.asks(MAIL + rcpt + b"DATA\r\nx\r\n.\r\n", count + 3)
        assert replies == ["250 2.1.0", *["250 2.1.5"] * count, "354", "250 2.6.0"]
        assert [mail.recipient for mail in it.sink.mails] == [f"{number}@example.org" for number in range(count)]


@pytest.mark.parametrize(
    ("by_name", "reply"),
    [
        ({"two": (550, "5.1.1 no such user")},
         "550 5.1.1 no such user (refused for 1 of 3 recipients, so nobody gets it)"),
        ({"one": (554, "5.7.1 no"), "three": (550, "5.1.1 no such user")},
         "554 5.7.1 no (refused for 2 of 3 recipients, so nobody gets it)"),
        ({"one": (550, "5.1.1 no"), "two": (550, "5.1.1 no"), "three": (550, "5.1.1 no")}, "550 5.1.1 no"),
        ({"one": (550, "5.1.1 no"), "three": (450, "4.2.0 later")}, "450 4.2.0 later"),
        ({"one": (550, "5.1.1 no"), "two": ValueError("a bug")}, "451 4.3.0 this server has a problem; try again later"),
    ],
)
@run
async def test_without_a_place_for_rejected_mails_one_that_is_refused_is_enough(by_name, reply):
    async with serving({"10-mixed": verdicts(**by_name)}) as it:
        client = await it.greeted()
        client.send(THREE)
        assert [await client.reply() for _ in range(6)][-1] == reply
        assert it.sink.mails == []


@run
async def test_one_recipient_only():
    async with serving(one_recipient=True) as it:
        client = await it.greeted()
        assert await client.asks(THREE, 6) == ["250 2.1.0", "250 2.1.5", "452 4.5.3", "452 4.5.3", "354", "250 2.6.0"]
        assert [mail.recipient for mail in it.sink.mails] == ["one@example.org"]


# A sink that does not wait


@pytest.mark.parametrize("gives_back", [False, True])
@run
async def test_any_number_of_mails_in_one_go_to_a_sink_that_does_not_wait(gives_back):
    def message(context, mail):
        if gives_back:
            context.continue_(mail)
        return gives_back

    async with serving({"10-pass": plugin(message=message)}, sink=NullSink(""), max_in_flight=1) as it:
        client = await it.greeted()
        sending = asyncio.create_task(client.asks(ALL.removeprefix(EHLO) * 3000, 12_000))
        assert (await sending)[3::4] == ["250 2.6.0"] * 3000
        assert it.gateway.report.counts.continued == 3000


@run
async def test_with_a_sink_that_does_not_wait_the_place_for_rejected_mails_fails_for_those_that_need_it():
    async with serving({"10-two": verdicts(two=(550, "no"))}, mixed=True, sink=NullSink("")) as it:
        first, second = await it.greeted(), await it.opened()
        it.failed.error = "no space"
        assert (await first.asks(THREE, 6))[-1] == "451 4.3.0"
        assert (await second.ask(TEXT + b".\r\n")).startswith("250 2.6.0 stored as ")
        assert (it.gateway.report.counts.unfinished, it.gateway.report.counts.continued) == (3, 1)
