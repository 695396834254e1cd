"""Servers that deliver to each other: nobody waits for long while each of them waits for the other."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from sending_tools import SILENCE, NextServer, next_server
from smtp_tools import TEXT, Client, Serving, codes, run, serving
from test_mail_smtp_passing_on import relaying

from mqcore.mail.smtp.sink import LmtpSink, SmtpSink

ENVELOPE = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.STALLED", 0.2)


async def told(client: Client) -> str:
    client.send(ENVELOPE + TEXT + b".\r\n")
    return await last_of_four(client)


async def last_of_four(client: Client) -> str:
    return codes([await client.reply() for _ in range(4)])[-1]


@pytest.mark.parametrize("lmtp", [False, True])
@run
async def test_forty_mails_that_go_round(lmtp, tmp_path, monkeypatch):
    """Each of two servers had all its connections to the other in use, whose mails waited for connections to the first, until
    the time for an answer was over: ten minutes. Now it is never waited for that nothing moves."""
    monkeypatch.setattr("mqcore.mail.smtp.pool.STALLED", 600.0)
    kind = LmtpSink if lmtp else SmtpSink
    options = {"lmtp": lmtp} if lmtp else {"one_recipient": True}
    async with (
        serving(at=f"unix:{tmp_path}/a", sink=kind(f"unix:{tmp_path}/b"), **options) as one,
        serving(at=f"unix:{tmp_path}/b", sink=kind(f"unix:{tmp_path}/a"), **options) as other,
    ):
        clients = [await (one, other)[number % 2].greeted() for number in range(40)]
        answers = set(await asyncio.gather(*map(told, clients)))
        assert "451 4.4.6" in answers and answers <= {"451 4.4.6", "554 5.4.6"}
        for it in (one, other):
            await it.until(lambda it=it: it.gateway.in_flight == 0)


@run
async def test_four_servers_in_a_ring(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.STALLED", 600.0)
    async with contextlib.AsyncExitStack() as stack:
        ring = []
        for number in range(4):
            sink = LmtpSink(f"unix:{tmp_path}/{(number + 1) % 4}")
            ring.append(await stack.enter_async_context(serving(at=f"unix:{tmp_path}/{number}", sink=sink, lmtp=True)))
        clients = [await ring[number % 4].greeted() for number in range(100)]
        assert set(await asyncio.gather(*map(told, clients))) <= {"451 4.4.6", "554 5.4.6"}
        for it in ring:
            await it.until(lambda it=it: it.gateway.in_flight == 0)


@pytest.mark.parametrize("max_loops", [1, 10])
@run
async def test_one_mail_that_goes_round_is_refused_for_good(max_loops, tmp_path):
    async with serving(at=f"unix:{tmp_path}/a", sink=LmtpSink(f"unix:{tmp_path}/a"), lmtp=True, max_loops=max_loops) as it:
        client = await it.greeted()
        client.send(ENVELOPE + TEXT + b".\r\n")
        said = [await client.reply() for _ in range(4)][-1]
        assert said == f"554 5.4.6 this mail goes round in a loop: it was here {max_loops + 1} times before"
        assert it.gateway.report.counts.rejected == max_loops + 1


# Which mail was here before


def line_of(it: Serving) -> bytes:
    return b"Received: from x by y\r\n\t(mqcore %b)\r\n\twith ESMTP; z\r\n" % it.server.host.tracer.id.encode()


OTHER = b"Received: from x by y (mqcore 0123456789abcdef) with ESMTP; z\r\n"


@pytest.mark.parametrize(
    ("make", "loops", "hops"),
    [
        (lambda line: line + TEXT, 1, 1),
        (lambda line: line.replace(b"Received", b"rEcEIVed ") * 3 + OTHER + TEXT, 3, 4),
        (lambda line: OTHER * 2 + TEXT, 0, 2),
        (lambda line: TEXT + line * 20, 0, 0),
        (lambda line: b"\r\n" + line * 20, 0, 0),
        (lambda line: line.replace(b"Received", b"X-Received") * 20 + TEXT, 0, 0),
        (lambda line: line, 1, 1),
    ],
    ids=["one", "four", "another server's", "in the body", "behind an empty header", "in another field", "nothing else"],
)
@run
async def test_lines_of_our_own(make, loops, hops):
    async with serving() as it:
        await it.until(lambda: it.server)
        client = await it.opened()
        assert codes([await client.ask(make(line_of(it)) + b".\r\n")]) == ["250 2.6.0"]
        (mail,) = it.sink.mails
        assert (mail.origin.loops, mail.origin.hops) == (loops, hops)


@pytest.mark.parametrize(("count", "said"), [(10, "250 2.6.0"), (11, "554 5.4.6")])
@run
async def test_ten_are_allowed(count, said):
    async with serving() as it:
        await it.until(lambda: it.server)
        client = await it.opened()
        assert codes([await client.ask(line_of(it) * count + TEXT + b".\r\n")]) == [said]
        assert await client.asks(ENVELOPE + TEXT + b".\r\n", 4) == ["250 2.1.0", "250 2.1.5", "354", "250 2.6.0"]


# Who waits


@pytest.mark.parametrize("limit", ["ours", "theirs"])
@run
async def test_a_mail_that_was_here_before_waits_for_no_connection(limit, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.STALLED", 600.0)
    monkeypatch.setattr("mqcore.mail.smtp.pool.MORE_CONNECTIONS", 0)
    if limit == "ours":
        monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)
    async with next_server({"message": [SILENCE]}) as server, relaying(server) as it:
        server.max_open = 1
        first, second, third = await it.greeted(), await it.greeted(), await it.greeted()
        waiting = asyncio.create_task(told(first))
        await server.silent.wait()
        second.send(ENVELOPE + line_of(it) + TEXT + b".\r\n")
        said = [await second.reply() for _ in range(4)][-1]
        assert (
            said
            == "451 4.4.6 this mail was here before, and does not wait for a connection to the next server; try again later"
        )
        patient = asyncio.create_task(told(third))
        server.speak.set()
        assert await waiting == await patient == "250 2.6.0"
        assert await second.asks(ENVELOPE + line_of(it) + TEXT + b".\r\n", 4) == ["250 2.1.0", "250 2.1.5", "354", "250 2.6.0"]


@run
async def test_a_mail_that_came_by_other_servers_has_connections_of_its_own(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)
    async with next_server({"message": [SILENCE] * 3}) as server, relaying(server) as it:
        tasks = []
        for hops in range(3):
            client = await it.greeted()
            client.send(ENVELOPE + OTHER * hops + TEXT + b".\r\n")
            tasks.append(asyncio.create_task(last_of_four(client)))
            await it.until(lambda hops=hops: len(server.seen) == hops + 1)
        server.speak.set()
        assert await asyncio.gather(*tasks) == ["250 2.6.0"] * 3
        assert server.most_open == 3


@run
async def test_who_waits_while_something_moves_goes_on_waiting(monkeypatch):
    """A next server that is slow is no reason to refuse a mail."""
    monkeypatch.setattr("mqcore.mail.smtp.pool.STALLED", 2)
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)

    class Slow(NextServer):
        async def _answer(self, writer, success, *stages):
            if "message" in stages:
                await asyncio.sleep(0.2)
            return await super()._answer(writer, success, *stages)

    server = Slow()
    await server.start()
    try:
        async with relaying(server) as it:
            clients = [await it.greeted() for _ in range(12)]  # the last waits for longer than nothing may move
            assert await asyncio.gather(*map(told, clients)) == ["250 2.6.0"] * 12
    finally:
        await server.stop()


@pytest.mark.parametrize("limit", ["ours", "theirs"])
@run
async def test_a_next_server_that_is_silent_keeps_those_only_whom_it_has(limit, monkeypatch):
    if limit == "ours":
        monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)
    async with next_server({"message": [SILENCE]}) as server, relaying(server) as it:
        server.max_open = 1
        first, second = await it.greeted(), await it.greeted()
        waiting = asyncio.create_task(told(first))
        await server.silent.wait()
        assert await told(second) == "451 4.4.2"
        server.speak.set()
        assert await waiting == "250 2.6.0"
        assert await told(second) == "250 2.6.0"
