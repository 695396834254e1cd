"""Servers that deliver to each other: nobody waits for long while each of them waits for the other."""

from __future__ import annotations

import asyncio

import pytest
from sending_tools import SILENCE, NextServer, next_server
from smtp_tools import TEXT, Client, codes, run, serving
from test_mail_smtp_passing_on import relaying

from mqcore.mail.smtp.sink import LmtpSink, SmtpSink

ENVELOPE = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.STALLED", 0.2)


async def told(client: Client) -> str:
    client.send(ENVELOPE + TEXT + b".\r\n")
    return codes([await client.reply() for _ in range(4)])[-1]


@pytest.mark.parametrize("lmtp", [False, True])
@run
async def test_forty_mails_that_go_round(lmtp, tmp_path):
    """Each of two servers had all its connections to the other in use, whose mails waited for connections to the first, until
    the time for an answer was over: ten minutes."""
    kind = LmtpSink if lmtp else SmtpSink
    options = {"lmtp": lmtp} if lmtp else {"one_recipient": True}
    async with (
        serving(at=f"unix:{tmp_path}/a", sink=kind(f"unix:{tmp_path}/b"), **options) as one,
        serving(at=f"unix:{tmp_path}/b", sink=kind(f"unix:{tmp_path}/a"), **options) as other,
    ):
        clients = [await (one, other)[number % 2].greeted() for number in range(40)]
        assert await asyncio.gather(*map(told, clients)) == ["451 4.4.2"] * 40
        for it in (one, other):
            await it.until(lambda it=it: it.gateway.in_flight == 0)


@run
async def test_who_waits_while_something_moves_goes_on_waiting(monkeypatch):
    """A next server that is slow is no reason to refuse a mail."""
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)

    class Slow(NextServer):
        async def _answer(self, writer, success, *stages):
            if "message" in stages:
                await asyncio.sleep(0.05)
            return await super()._answer(writer, success, *stages)

    server = Slow()
    await server.start()
    try:
        async with relaying(server) as it:
            clients = [await it.greeted() for _ in range(12)]  # the last waits for three times as long as nothing may move
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
