"""The LMTP server on a real socket: each recipient has a verdict of its own, and no other waits for it or loses by it."""

from __future__ import annotations

from typing import Any

import pytest
from smtp_tools import LHLO, MAIL, TEXT, Client, Holds, Serving, certificate, codes, plugin, run, serving
from test_mail_gateway import OwnSink

from mqcore.mail import CANCELLED, SinkError, Verdict
from mqcore.mail.errors import SinkFull

NAMES = ("one", "two", "three")


def message(*names: str) -> bytes:
    return MAIL + b"".join(b"RCPT TO:<%b@example.org>\r\n" % name.encode() for name in names) + b"DATA\r\n" + TEXT + b".\r\n"


async def sent(client: Client, *names: str) -> list[str]:
    """The replies to a mail for these, who are all taken by RCPT."""
    client.send(message(*names))
    assert codes([await client.reply() for _ in range(len(names) + 2)]) == ["250 2.1.0", *["250 2.1.5"] * len(names), "354"]
    return [await client.reply() for _ in names]


def figures(it: Serving) -> dict[str, int]:
    names = ("continued", "failed", "rejected", "unfinished", "in_doubt", "unanswered")
    return {name: count for name in names if (count := getattr(it.gateway.report.counts, name))}


def refuse(context: Any, mail: Any) -> None:
    """What the name of the recipient asks for."""
    match mail.recipient.partition("@")[0]:
        case "no":
            mail.reject(550, "5.1.1 no such user")
        case "later":
            mail.reject(450, "4.2.0 later")
        case "gone":
            mail.reject(421, "4.3.2 I go")
        case "bug":
            raise ValueError("a bug")


@pytest.mark.parametrize("mixed", [False, True])
@run
async def test_each_recipient_has_a_verdict_of_its_own(mixed):
    """Refused for now or for good, or failed: the others have their mail, and nothing goes to `failed`, as the client knows."""
    async with serving({"10-refuse": plugin(message=refuse)}, lmtp=True, mixed=mixed) as it:
        client = await it.greeted()
        replies = await sent(client, "later", "one", "no", "bug", "two")
        assert [mail.recipient for mail in it.sink.mails] == ["one@example.org", "two@example.org"]
        one, two = (mail.origin.id for mail in it.sink.mails)
        assert replies == [
            "450 4.2.0 later",
            f"250 2.6.0 stored as {one}",
            "550 5.1.1 no such user",
            "451 4.3.0 this server has a problem; try again later",
            f"250 2.6.0 stored as {two}",
        ]
        assert it.failed.mails == []
        assert codes(await sent(client, "no")) == ["550 5.1.1"]
        assert codes(await sent(client, "one")) == ["250 2.6.0"]
    assert figures(it) == {"continued": 3, "rejected": 3, "failed": 1}


@run
async def test_a_recipient_who_is_named_twice_gets_one_mail_and_two_replies():
    """RFC 2033, 4.2."""
    async with serving({"10-refuse": plugin(message=refuse)}, lmtp=True) as it:
        client = await it.greeted()
        replies = await sent(client, "one", "no", "one", "no", "two")
        one, two = (mail.origin.id for mail in it.sink.mails)
        assert [reply.rpartition(" ")[2] for reply in replies] == [one, "user", one, "user", two]
        replies = await sent(client, "one", "one")
        assert replies == [f"250 2.6.0 stored as {it.sink.mails[2].origin.id}"] * 2
    assert figures(it) == {"continued": 3, "rejected": 1}


@run
async def test_recipients_whom_a_plugin_makes_the_same():
    def rcptto(context, message, address):
        message.recipient = address.lower()

    async with serving({"10-lower": plugin(rcptto=rcptto)}, lmtp=True) as it:
        replies = await sent(await it.greeted(), "One", "two", "ONE")
        assert replies[0] == replies[2] != replies[1]
        assert [mail.recipient for mail in it.sink.mails] == ["one@example.org", "two@example.org"]


@run
async def test_what_is_refused_for_all_is_told_to_each():
    def data(context, message, mime):
        message.reject(554, "5.6.0 I do not like it")

    async with serving({"10-no": plugin(data=data)}, lmtp=True) as it:
        client = await it.greeted()
        assert await sent(client, *NAMES) == ["554 5.6.0 I do not like it"] * 3
        assert await sent(client, "one", "one") == ["554 5.6.0 I do not like it"] * 2
    assert figures(it) == {"rejected": 4}


@run
async def test_421_for_one_closes_the_connection_when_all_have_their_replies():
    async with serving({"10-refuse": plugin(message=refuse)}, lmtp=True) as it:
        client = await it.greeted()
        assert codes(await sent(client, "gone", "one")) == ["451 4.3.2", "250 2.6.0"]
        assert (await client.reply()).startswith("421 4.3.2 ") and await client.is_closed()
        assert len(it.sink.mails) == 1


TAKEN = Verdict.accepted("taken as x")
NO, LATER = Verdict.rejected(550, "5.1.1 no"), Verdict.deferred(450, "4.2.0 later")


@pytest.mark.parametrize(
    ("says", "replies", "counts"),
    [
        ({}, ["250 2.6.0 taken"] * 3, {"continued": 3}),
        ({"two": TAKEN}, ["250 2.6.0 taken", "250 2.6.0 taken as x", "250 2.6.0 taken"], {"continued": 3}),
        ({"two": NO, "three": LATER}, ["250 2.6.0 taken", "550 5.1.1 no", "450 4.2.0 later"], {"continued": 1, "rejected": 2}),
        ({"one": NO, "two": NO, "three": NO}, ["550 5.1.1 no"] * 3, {"rejected": 3}),
        ({"one": Verdict.failed()}, ["451 4.3.0 ", "250 2.6.0 taken", "250 2.6.0 taken"], {"continued": 2, "failed": 1}),
        ({"one": CANCELLED}, ["451 4.3.0 ", "250 2.6.0 taken", "250 2.6.0 taken"], {"continued": 2, "unfinished": 1}),
        ({"one": Verdict.in_doubt("4.4.2 no answer")}, ["451 4.4.2 no answer", "250 2.6.0 taken", "250 2.6.0 taken"],
         {"continued": 2, "rejected": 1, "in_doubt": 1}),
        ({"one": LATER._replace(partly=True)}, ["450 4.2.0 later", "250 2.6.0 taken", "250 2.6.0 taken"],
         {"continued": 2, "rejected": 1, "in_doubt": 1}),
        ({"two": ValueError("a bug")}, ["451 4.3.0 "] * 3, {"failed": 3}),
        ({"two": SinkError("it is gone")}, ["451 4.3.0 "] * 3, {"unfinished": 3}),
    ],
)
@run
async def test_what_a_sink_says_of_each(says, replies, counts):
    sink = OwnSink(**says)
    async with serving(sink=sink, lmtp=True) as it:
        for reply, expected in zip(await sent(await it.greeted(), *NAMES), replies, strict=True):
            assert reply.startswith(expected)
    assert figures(it) == counts


@run
async def test_one_for_whom_plugins_have_no_verdict_yet():
    """The replies come in the order of the RCPTs, so they come when all are known (RFC 2033, 4.2)."""
    holds = Holds("message")
    async with serving({"10-refuse": plugin(message=refuse), "20-hold": holds}, lmtp=True) as it:
        client = await it.greeted()
        client.send(message("one", "no", "two"))
        await it.until(lambda: len(holds.held) == 2)
        assert it.sink.mails == []
        holds.release()
        assert codes([await client.reply() for _ in range(8)])[5:] == ["250 2.6.0", "550 5.1.1", "250 2.6.0"]


@run
async def test_a_disk_that_is_full_is_told_to_those_whose_mail_was_good(monkeypatch):
    async with serving({"10-refuse": plugin(message=refuse)}, lmtp=True) as it:

        def store(mails):
            raise SinkFull("no room")

        client = await it.greeted()
        with monkeypatch.context() as patched:
            patched.setattr(it.sink, "store", store)
            assert codes(await sent(client, "one", "no", "two")) == ["452 4.3.1", "550 5.1.1", "452 4.3.1"]
        assert codes(await sent(client, "one", "no")) == ["250 2.6.0", "550 5.1.1"]


@run
async def test_a_client_that_goes_away_takes_its_mail_back():
    holds = Holds("message")
    async with serving({"10-hold": holds}, lmtp=True) as it:
        client = await it.greeted()
        client.send(message(*NAMES))
        await it.until(lambda: len(holds.held) == 3)
        client.leave()
        await it.until(lambda: holds.closed)
    assert it.sink.mails == [] and figures(it) == {"unfinished": 3}


@run
async def test_a_client_that_goes_away_while_its_mail_is_stored():
    async with serving(lmtp=True) as it:
        it.sink.gate.clear()
        client = await it.greeted()
        client.send(message(*NAMES))
        await it.until(it.sink.waits.is_set)
        client.leave()
        await it.until(lambda: not it.server.host.connections)
    assert len(it.sink.mails) == 3 and figures(it) == {"continued": 3, "unanswered": 3}


@run
async def test_a_client_that_closes_its_own_side_gets_every_reply():
    async with serving({"10-refuse": plugin(message=refuse)}, lmtp=True) as it:
        client = await it.connect()
        client.send(LHLO + message("one", "no"))
        client.half_close()
        replies = (await client.reader.read()).decode().split("\r\n")
        assert codes(replies)[-3:] == ["250 2.6.0", "550 5.1.1", ""]


@pytest.mark.parametrize("tls", [False, True])
@run
async def test_starttls_and_what_plugins_see(tls):
    seen = []

    def note(context, mail):
        seen.append((mail.connection.helo, mail.connection.tls, mail.recipient))

    async with serving({"10-note": plugin(message=note)}, lmtp=True, tls="starttls" if tls else None) as it:
        client = await it.greeted()
        if tls:
            assert await client.ask(b"STARTTLS\r\n") == "220 2.0.0 go ahead"
            await client.start_tls(certificate().client)
            await client.ask(LHLO)
        assert codes(await sent(client, "one")) == ["250 2.6.0"]
    assert seen == [("client.example", tls, "one@example.org")]
