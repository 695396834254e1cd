"""The gateway by itself: verdicts of sinks, memory, fairness, and stores that are full."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from mail_tools import untraced
from smtp_tools import MAIL, TEXT, Holds, ListSink, codes, plugin, run, serving

import mqcore
from mqcore.mail import ACCEPTED, CANCELLED, DISCARDED, Gateway, Mail, NullSink, Sink, SinkError, Source, Transaction, Verdict
from mqcore.mail.errors import SinkFull


def envelope(count: int) -> bytes:
    return MAIL + b"".join(b"RCPT TO:<%d@example.org>\r\n" % number for number in range(count)) + b"DATA\r\n"


# A sink of one's own


class OwnSink(Sink):
    """Says of each mail what its recipient's name asks for."""

    url = "own:"

    def __init__(self, **says: object) -> None:
        self.says = says
        self.mails: list[Mail] = []
        self.taken_back = 0
        self.waits = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def deliver(self, mails: Sequence[Mail]) -> list[Verdict]:
        self.waits.set()
        await self.gate.wait()
        verdicts = []
        for mail in mails:
            said = self.says.get(mail.recipient.partition("@")[0], Verdict.accepted("taken"))
            if isinstance(said, Exception):
                raise said
            verdicts.append(said)
            if said.is_good:
                self.mails.append(mail)
        return verdicts

    def cancel(self, mails: Sequence[Mail]) -> None:
        self.taken_back += len(mails)


TWO = MAIL + b"RCPT TO:<one@example.org>\r\nRCPT TO:<two@example.org>\r\nDATA\r\nx\r\n.\r\n"
NO, LATER = Verdict.rejected(550, "5.1.1 no"), Verdict.deferred(450, "4.2.0 later")


@pytest.mark.parametrize(
    ("says", "mixed", "reply", "stored", "aside", "counts"),
    [
        ({}, False, "250 2.6.0 taken", 2, 0, {"continued": 2}),
        ({"one": NO, "two": NO}, False, "550 5.1.1 no", 0, 0, {"rejected": 2}),
        ({"one": NO}, True, "250 2.6.0 taken", 1, 1, {"continued": 1, "rejected": 1}),
        ({"one": LATER}, True, "250 2.6.0 taken", 1, 1, {"continued": 1, "rejected": 1}),
        ({"one": LATER, "two": NO}, True, "450 4.2.0 later", 0, 0, {"rejected": 2}),
        ({"two": Verdict.failed()}, True, "250 2.6.0 taken", 1, 1, {"continued": 1, "failed": 1}),
        ({"one": Verdict.in_doubt("4.4.2 no answer"), "two": NO}, True, "451 4.4.2 no answer", 0, 0,
         {"rejected": 2, "in_doubt": 1}),
        ({"one": CANCELLED, "two": CANCELLED}, False, "451 4.3.0 ", 0, 0, {"unfinished": 2}),
        ({"one": ValueError("a bug")}, False, "451 4.3.0 ", 0, 0, {"failed": 2}),
    ],
)
@run
async def test_what_a_sink_says(says, mixed, reply, stored, aside, counts):
    sink = OwnSink(**says)
    async with serving(sink=sink, mixed=mixed) as it:
        client = await it.greeted()
        client.send(TWO)
        assert [await client.reply() for _ in range(5)][-1].startswith(reply)
        assert (len(sink.mails), len(it.failed.mails)) == (stored, aside)
    names = ("continued", "failed", "rejected", "unfinished", "in_doubt", "unanswered")
    assert {name: count for name in names if (count := getattr(it.gateway.report.counts, name))} == counts


class SaysAtOnce(OwnSink):
    """Says this of all mails of a transaction, or raises it, before `deliver_soon` returns."""

    delivers_soon = True

    def __init__(self, said: Any) -> None:
        super().__init__()
        self.said = said

    async def deliver(self, mails):
        raise AssertionError

    def deliver_soon(self, mails, token, answer):
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.mark.parametrize(
    ("said", "reply", "counts"),
    [
        (ACCEPTED, "250 2.6.0 ", {"continued": 2}),
        (Verdict.accepted("taken"), "250 2.6.0 taken", {"continued": 2}),
        (DISCARDED, "250 2.6.0 ", {"discarded": 2}),
        (NO, "550 5.1.1 no", {"rejected": 2}),
        (LATER, "450 4.2.0 later", {"rejected": 2}),
        (Verdict.in_doubt("4.4.2 no answer"), "451 4.4.2 no answer", {"rejected": 2, "in_doubt": 2}),
        (CANCELLED, "451 4.3.0 ", {"unfinished": 2}),
        (ValueError("a bug"), "451 4.3.0 ", {"failed": 2}),
        (MemoryError(), "452 4.3.1 ", {"rejected": 2}),
    ],
)
@run
async def test_what_a_sink_says_at_once_of_all(said, reply, counts):
    async with serving(sink=SaysAtOnce(said)) as it:
        client = await it.greeted()
        client.send(TWO)
        assert [await client.reply() for _ in range(5)][-1].startswith(reply)
    names = ("continued", "discarded", "failed", "rejected", "unfinished", "in_doubt", "unanswered")
    assert {name: count for name in names if (count := getattr(it.gateway.report.counts, name))} == counts


@pytest.mark.parametrize("at_once", [False, True])
@run
async def test_a_sink_that_breaks_ends_the_run(at_once):
    error = SinkError("the broker is gone")
    sink = SaysAtOnce(error) if at_once else OwnSink(one=error)
    async with serving(sink=sink) as it:
        client = await it.greeted()
        assert (await client.asks(TWO, 5))[-1] == "451 4.3.0"
        await it.until(lambda: it.gateway.is_stopping)
    assert it.gateway.report.error == "the broker is gone"
    assert it.gateway.report.counts.unfinished == 2


@pytest.mark.parametrize("verdicts", [[], [None, None], [Verdict.accepted()] * 3])
@run
async def test_a_sink_that_does_not_say_what_became_of_each(verdicts):
    class Wrong(Sink):
        url = "wrong:"

        async def deliver(self, mails):
            return verdicts

    async with serving(sink=Wrong()) as it:
        client = await it.greeted()
        assert (await client.asks(TWO, 5))[-1] == "451 4.3.0"
    assert it.gateway.report.counts.failed == 2


@run
async def test_a_sink_is_told_when_nobody_wants_it_any_more():
    sink = OwnSink()
    sink.gate.clear()
    async with serving(sink=sink) as it:
        client = await it.greeted()
        client.send(TWO)
        await sink.waits.wait()
        client.leave()
        await it.until(lambda: sink.taken_back == 2)
        sink.gate.set()
    assert (it.gateway.report.counts.continued, it.gateway.report.counts.unanswered) == (2, 2)


@run
async def test_a_sink_that_takes_too_long_when_the_run_is_stopped(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.02)
    sink = OwnSink()
    sink.gate.clear()
    async with serving(sink=sink) as it:
        client = await it.greeted()
        client.send(TWO)
        await sink.waits.wait()
        it.gateway.stop()
        assert codes([await client.reply() for _ in range(5)])[-1] == "451 4.4.2"
    assert it.gateway.report.counts.in_doubt == 2


# What is offered


class Offers(Source):
    """Offers what it is given, and keeps what it is told."""

    url = "offers:"
    has_waiting_client = True

    def __init__(self, *offered: Any) -> None:
        self.offered = offered
        self.errors: list[Exception] = []

    async def run(self, gateway):
        for one in self.offered:
            try:
                gateway.offer([one])
            except (TypeError, ValueError, AttributeError) as error:
                self.errors.append(error)

    def stop(self):
        """All is offered."""


class Told(Transaction):
    def settle(self, verdicts):
        self.verdicts = verdicts


class Unmade(Transaction):
    def __init__(self):
        """Without that of the base class."""


@run
async def test_what_cannot_be_offered():
    mail, others = Mail(b"x"), [Mail(b"y"), Mail(b"z")]
    told = Told(others)
    twice, unread = Transaction([mail, mail]), Transaction([Mail.__new__(Mail)])
    source = Offers(twice, Unmade(), None, unread, told, told, Transaction([mail]))
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        gateway = Gateway(dispatcher, source, NullSink(""))
        with pytest.raises(RuntimeError, match="no way"):
            gateway._take(mail, mqcore.CONTINUE)
        report = await gateway.run()
        with pytest.raises(RuntimeError, match="once"):
            await gateway.run()
    assert [type(error) for error in source.errors] == [ValueError, TypeError, TypeError, AttributeError, TypeError]
    assert told.verdicts == [ACCEPTED] * 2
    assert report.counts.continued == 3 and gateway.in_flight == gateway.bytes == 0
    for wrong in ([], [b"x"], [None]):
        with pytest.raises((TypeError, ValueError)):
            Transaction(wrong)


# What waits for the store


@run
async def test_what_waits_for_the_store_is_dropped_when_its_client_goes_away():
    """On a slow disk, clients that lost their patience send it again: it must not be stored twice."""
    async with serving() as it:
        it.sink.gate.clear()
        first, gone, third = [await it.opened() for _ in range(3)]
        first.send(TEXT + b".\r\n")
        await it.until(it.sink.waits.is_set)
        gone.send(TEXT + b".\r\n")
        third.send(TEXT + b".\r\n")
        await it.until(lambda: it.gateway.in_flight == 3)
        gone.leave()
        await it.until(lambda: len(it.server.host.connections) == 2)
        it.sink.gate.set()
        assert codes([await first.reply(), await third.reply()]) == ["250 2.6.0"] * 2
        assert it.sink.groups == [1, 1]
    counts = it.gateway.report.counts
    assert (counts.continued, counts.unfinished, counts.unanswered) == (2, 1, 0)


@run
async def test_what_waits_for_the_store_when_a_run_that_is_stopped_takes_too_long(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.02)
    async with serving() as it:
        it.sink.gate.clear()
        first, second = [await it.opened() for _ in range(2)]
        first.send(TEXT + b".\r\n")
        await it.until(it.sink.waits.is_set)
        second.send(TEXT + b".\r\n")
        await it.until(lambda: it.gateway.in_flight == 2)
        it.gateway.stop()
        assert codes([await second.reply()]) == ["421 4.3.2"]
        it.sink.gate.set()
        assert codes([await first.reply()]) == ["250 2.6.0"]
    assert (it.gateway.report.counts.continued, it.gateway.report.counts.unfinished) == (1, 1)


@run
async def test_what_is_taken_back_while_it_waits_for_the_store_is_not_settled():
    class Waits(Offers):
        async def run(self, gateway):
            gateway.offer(self.offered[:1])
            await asyncio.to_thread(sink.waits.wait, 60)
            gateway.offer(self.offered[1:])
            assert [told.committing for told in self.offered] == [True, False]
            for told in self.offered:
                told.cancel()
            sink.gate.set()

    sink, source = ListSink(), Waits(Told([Mail(b"x")]), Told([Mail(b"y")]))
    sink.gate.clear()
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        report = await Gateway(dispatcher, source, sink).run()
    assert [getattr(told, "verdicts", None) for told in source.offered] == [[ACCEPTED], None]
    assert (report.counts.continued, report.counts.unanswered, report.counts.unfinished) == (1, 1, 1)


# Many recipients


@run
async def test_a_recipient_who_is_named_twice_gets_one_mail():
    async with serving() as it:
        client = await it.greeted()
        twice = MAIL + b"RCPT TO:<b@example.org>\r\n" * 2 + b"DATA\r\nx\r\n.\r\n"
        assert await client.asks(twice, 5) == ["250 2.1.0", "250 2.1.5", "250 2.1.5", "354", "250 2.6.0"]
        assert len(it.sink.mails) == 1


@pytest.mark.parametrize("tag", ["same", "own"])
@run
async def test_mails_of_a_transaction_share_their_bytes(tag):
    def message(context, mail):
        mail.mime = b"X-Tag: %b\r\n%b" % (b"1" if tag == "same" else mail.recipient.encode(), mail.mime)

    async with serving({"10-tag": plugin(message=message)}) as it:
        client = await it.greeted()
        assert (await client.asks(envelope(20) + TEXT + b".\r\n", 23))[-1] == "250 2.6.0"
        assert len({id(mail.mime) for mail in it.sink.mails}) == (1 if tag == "same" else 20)
        assert len({id(mail.origin.mime) for mail in it.sink.mails}) == 1


@run
async def test_hooks_of_many_recipients_let_others_have_their_turn():
    order = []

    def message(context, mail):
        order.append(mail.recipient)
        end = asyncio.get_running_loop().time  # the loop's clock stands still within a turn
        turns.add(end())

    turns: set[float] = set()

    def slow(context, mail):
        total = sum(range(20_000))
        assert total

    async with serving({"10-note": plugin(message=message), "20-slow": plugin(message=slow)}) as it:
        client = await it.greeted()
        assert (await client.asks(envelope(300) + TEXT + b".\r\n", 303))[-1] == "250 2.6.0"
    assert order == [f"{number}@example.org" for number in range(300)]
    assert len(turns) > 1


@run
async def test_a_client_that_goes_away_between_two_portions():
    holds = Holds("message")

    def slow(context, mail):
        assert sum(range(100_000))

    async with serving({"05-slow": plugin(message=slow), "10-hold": holds}) as it:
        client = await it.greeted()
        client.send(envelope(200) + TEXT + b".\r\n")
        await it.until(lambda: holds.held)
        client.leave()
        await it.until(lambda: it.gateway.report.counts.unfinished == 200)
        assert it.sink.mails == []


# Stores that are full


class SmallSink(ListSink):
    """Has room for mails of up to ten octets, without their trace."""

    def store(self, mails: Sequence[Mail]) -> None:
        if any(len(text) > 10 for text in untraced(mail.mime for mail in mails)):
            raise SinkFull("no space")
        super().store(mails)


@run
async def test_a_store_that_is_full_refuses_what_it_has_no_room_for_and_goes_on():
    sink = SmallSink()
    async with serving(sink=sink) as it:
        for _ in range(2):
            big, small = await it.opened(), await it.opened()
            big.send(TEXT + b".\r\n")
            small.send(b"x\r\n.\r\n")
            assert codes([await big.reply(), await small.reply()]) == ["452 4.3.1", "250 2.6.0"]
        assert untraced(mail.mime for mail in sink.mails) == [b"x\r\n"] * 2
        assert not it.gateway.is_stopping
    assert (it.gateway.report.counts.unfinished, it.gateway.report.exit_code) == (2, 0)


@run
async def test_a_place_for_failed_mails_that_is_full():
    def message(context, mail):
        if mail.recipient.startswith("two"):
            mail.reject(550, "5.1.1 no")

    async with serving({"10-no": plugin(message=message)}, mixed=True) as it:
        store, it.failed.store = it.failed.store, lambda mails: (_ for _ in ()).throw(SinkFull("no space"))
        client = await it.greeted()
        assert (await client.asks(TWO, 5))[-1] == "452 4.3.1"
        assert it.sink.mails == []
        it.failed.store = store
        assert (await client.asks(TWO, 5))[-1] == "250 2.6.0"
        assert (len(it.sink.mails), len(it.failed.mails)) == (1, 1)
