"""Mails that go to the next server their short way, without a coroutine: the same becomes of them as on the longer one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from sending_tools import NextServer, deliver, delivering, next_server
from smtp_tools import run

import mqcore
from mqcore.mail import Mail
from mqcore.mail._counts import Row
from mqcore.mail.smtp._soon import Soon
from mqcore.mail.smtp.delivery import Delivery
from mqcore.mail.smtp.outgoing import Client, Lost
from mqcore.mail.smtp.upstream import Health, Upstream
from mqcore.mail.verdicts import Kind
from mqcore.smtp.content import make_content

MAILS = [b"Subject: %d\n\nhello\n.\n" % number for number in range(6)]


@pytest.fixture
def long_ways(monkeypatch):
    """The mails that went by a coroutine."""
    gone: list[Mail] = []

    class Counted(Delivery):
        def __init__(self, sender, mails, begun=None):
            gone.extend(mails)
            super().__init__(sender, mails, begun)

    monkeypatch.setattr("mqcore.mail.smtp.sender.Delivery", Counted)
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.01,) * 3)
    return gone


def pipelining(server: NextServer) -> NextServer:
    server.extensions.append("PIPELINING")
    return server


@run
async def test_one_connection_is_made_the_longer_way_and_then_used(tmp_path, long_ways):
    async with next_server() as server:
        report, _ = await deliver(pipelining(server), tmp_path, MAILS, max_in_flight=1)
        assert [mail[2] for mail in server.mails] == [make_content(mail).removesuffix(b".\r\n") for mail in MAILS]
        assert report.counts.stored == len(MAILS) and len(long_ways) == 1 and server.connections == 1
        assert server.commands.count("RSET") == 0
        _, size = server.commands[-4].split("SIZE=")
        assert int(size.split()[0]) == len(make_content(MAILS[-1]))
    assert (tmp_path / f"mbox.sent.smtp.127.0.0.1:{server.port}").read_text().count("\n") == len(MAILS)


@run
async def test_mails_wait_for_a_connection_without_a_coroutine_each(tmp_path, long_ways, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 2)
    mails = [b"Subject: %d\n\nx\n" % number for number in range(700)]
    async with next_server() as server:
        report, _ = await deliver(pipelining(server), tmp_path, mails)
        assert report.counts.stored == len(mails) == len({content for _, _, content in server.mails})
        assert server.most_open == 2 and len(long_ways) == 2  # for each a connection


@run
async def test_all_recipients_are_told_of_and_a_plugin_is_told_at_the_end(tmp_path, long_ways):
    def to_three(context, message):
        message.recipients = ["one@example.org", "two@example.org", "one@example.org"]

    def sent(context, message):
        told.append((message.results, message.json["results"]))

    told: list[object] = []
    plugins = {"10-to": SimpleNamespace(mq_smtp_in_message=to_three, mq_smtp_out_sent=sent)}
    async with next_server({"message": ["250 2.0.0 queued"] * 5 + ["250 2.0.0 as 7"]}) as server:
        await deliver(pipelining(server), tmp_path, MAILS, plugins, max_in_flight=1)
        assert [recipients for _, recipients, _ in server.mails] == [["one@example.org", "two@example.org"]] * len(MAILS)
    last = [
        {"recipient": f"{name}@example.org", "state": "message", "code": 250, "description": "2.0.0 as 7"}
        for name in ("one", "two")
    ]
    assert len(long_ways) == 1 and len(told) == len(MAILS)
    assert told[-1] == (last, last)


@run
async def test_a_plugin_that_is_asked_before_a_mail_leaves(tmp_path, long_ways):
    def data(context, message):
        message.headers.add("X-Out", "yes")

    async with next_server() as server:
        await deliver(
            pipelining(server), tmp_path, MAILS, {"10-out": SimpleNamespace(mq_smtp_out_data=data)}, max_in_flight=1
        )
        assert all(b"X-Out: yes" in content for _, _, content in server.mails)
    assert len(long_ways) == len(MAILS)


@run
async def test_a_mail_that_is_refused_goes_on_where_it_is(tmp_path, long_ways):
    async with next_server({"message": ["250 ok", "451 4.3.0 later", "250 ok", "550 5.7.1 no"]}) as server:
        report, failed = await deliver(pipelining(server), tmp_path, MAILS, max_in_flight=1)
        assert len(server.seen) == len(MAILS) + 1  # the second one twice
        assert server.connections == 1 and len(long_ways) == 3
    assert report.counts.stored == len(MAILS) - 1 and len(failed.mails) == 1
    assert failed.mails[0].origin.mime == MAILS[2]


@pytest.mark.parametrize(
    "mail", [b"Subject: 1\n\na\0b\n", b"Subject: 1\n\n" + b"x" * 5000], ids=["a NUL", "more than the server takes"]
)
@run
async def test_what_the_server_does_not_take(mail, tmp_path, long_ways):
    async with next_server() as server:
        server.extensions[:] = ["SIZE 3000", "PIPELINING"]
        report, failed = await deliver(server, tmp_path, [MAILS[0], mail, MAILS[1]], max_in_flight=1)
    assert report.counts.stored == 2 and len(failed.mails) == 1 and len(long_ways) == 2


@run
async def test_those_that_wait_are_given_up_when_the_run_is_stopped(tmp_path, long_ways, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)
    mails = [b"Subject: %d\n\nx\n" % number for number in range(600)]
    script = {"message": ["250 ok", "silence"]}
    async with next_server(script) as server, delivering(pipelining(server), tmp_path, mails) as it:
        await server.silent.wait()
        await it.until(lambda: it.gateway.sink._sender.pool._jobs)
        it.gateway.stop()
        server.speak.set()
        report = await it.end()
    assert report.counts.stored == len(server.mails) == 2
    assert not it.gateway.sink._sender.pool._jobs


@run
async def test_those_that_wait_go_on_when_all_connections_are_lost(tmp_path, long_ways, monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)
    mails = [b"Subject: %d\n\nx\n" % number for number in range(600)]
    async with next_server({"message": ["250 ok"] * 300 + ["drop", "drop"]}) as server:
        report, _ = await deliver(pipelining(server), tmp_path, mails)
    assert report.counts.stored == len(mails) and report.counts.in_doubt == 2


@run
async def test_a_record_that_cannot_be_written(tmp_path, long_ways, monkeypatch):
    from mqcore.mail import record

    def fail(fd):
        raise OSError(28, "No space left on device")

    script = {"message": ["250 ok", "silence"]}
    async with next_server(script) as server, delivering(pipelining(server), tmp_path, MAILS, max_in_flight=1) as it:
        await server.silent.wait()
        monkeypatch.setattr(record.os, "fsync", fail)
        server.speak.set()
        report = await it.end()
    assert "No space left" in (report.error or "") and report.counts.in_doubt == 1
    assert report.counts.stored == 1 and len(long_ways) == 1


# Both ways at once


class Transport:
    """Keeps what is written."""

    def __init__(self, buffered: int) -> None:
        self.written = b""
        self.buffered = buffered
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(fileno=lambda: -1)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_aborted = True


def new_client(lmtp: bool, buffered: int) -> Client:
    upstream = Upstream("smtp://next", ("next", 25), "us", lmtp, tls_out="none")
    client = Client(upstream, Health(upstream.url))
    client.connection_made(Transport(buffered))
    client.data_received(b"220 next\r\n")
    client.data_received(b"250-next\r\n250-SIZE\r\n250-8BITMIME\r\n250 PIPELINING\r\n")
    client.offers(client._protocol.extensions, most=client._protocol.size_limit, pipelining=True, lmtp=lmtp)
    client._end = None
    client._transport.written = b""
    return client


def told(client: Client, replies: object) -> object:
    transport = client._transport
    return (
        replies, client.replies if client.is_in_doubt else None, client.is_in_doubt, bool(client._error),
        client._protocol.is_idle, client.is_open, transport.written, transport.is_aborted, client._health.pipelining,
    )  # fmt: skip


async def hear(client: Client, pieces: list[bytes]) -> None:
    for piece in pieces:
        client.data_received(piece)
        await asyncio.sleep(0)
    client.connection_lost(None)


async def the_long_way(client: Client, mail: Mail, pieces: list[bytes]) -> object:
    sending = asyncio.create_task(client.send(mail.envelope, mail.recipients, make_content(mail.mime)))
    await asyncio.sleep(0)
    return await outcome(client, sending, pieces)


async def outcome(client: Client, sending: asyncio.Task[object], pieces: list[bytes]) -> object:
    await hear(client, pieces)
    try:
        replies = await sending
    except Lost as lost:
        replies = lost.reply
    return told(client, replies)


async def the_short_way(client: Client, mail: Mail, pieces: list[bytes], dispatcher: mqcore.Dispatcher) -> object:
    answers: list[object] = []

    async def send(mails, *, begun):
        return await begun.go_on()

    hook = dispatcher.hook("mq_smtp_out_data")
    pool = SimpleNamespace(add=lambda job: client.begin(job), leave=lambda client: None)
    sender = SimpleNamespace(
        pool=pool, sink=SimpleNamespace(record=None), replies=Counter(), sent={}, counts=Row(), data_hook=hook,
        sent_hook=hook, together=False, is_stopping=False, send=send,
    )  # fmt: skip
    soon = Soon(sender, lambda mail: {})
    assert soon.deliver_soon((mail,), "token", lambda *answer: answers.append(answer))
    going_on: list[asyncio.Task[object]] = []
    for piece in pieces:
        client.data_received(piece)
        if answers and not going_on and len(answers[0]) == 3:
            going_on.append(asyncio.create_task(answers[0][2]((mail,))))
        await asyncio.sleep(0)
    client.connection_lost(None)
    assert len(answers) == 1 and answers[0][0] == "token"
    if len(answers[0]) == 2:
        assert answers[0][1].kind is Kind.ACCEPTED
        return told(client, mail.results)
    try:
        replies = await (going_on[0] if going_on else answers[0][2]((mail,)))
    except Lost as lost:
        replies = lost.reply
    return told(client, replies)


GOOD = [b"250 2.1.0 ok\r\n", b"250 2.1.5 ok\r\n", b"354 go on\r\n", b"250 2.0.0 queued as  7\r\n"]
ODD = [
    b"250-2.0.0 one\r\n250 2.0.0 two\r\n", b"250\r\n", b"250 ok\n", b"250 \xc3\xa4\r\n", b"251 else\r\n",
    b"450 4.2.1 later\r\n", b"550 5.1.1 no\r\n", b"421 4.3.2 going\r\n", b"354 go on\r\n", b"250 ok\r\r\n", b"what?\r\n",
    b"", b"250-2.0", b"250 ok\r\n250 ok\r\n", b"452 4.5.3 too many\r\n", b"250 a\tb\r\n", b"299 " + b"x" * 990 + b"\r\n",
    b"250x\r\n", b"354\r\n",
]  # fmt: skip


def script(seed: int, recipients: int, lmtp: bool) -> list[bytes]:
    """What a server says, odd in places, in pieces."""
    chance = random.Random(seed)
    messages = recipients if lmtp else 1
    replies = [GOOD[0], *[GOOD[1]] * recipients, GOOD[2], *[chance.choice([GOOD[3], b"250 2.0.0 ok\r\n"])] * messages]
    for number in range(len(replies)):
        if chance.random() < 0.12:
            replies[number] = chance.choice(ODD)
    # A server does not reply to a message that it has not got; after that, anything may come in any pieces.
    groups = [b"".join(replies[: recipients + 2]), b"".join(replies[recipients + 2 :])]
    pieces = []
    for group in groups:
        while group:
            size = chance.choice([1, 2, 5, 20, 1000, 1000, 1000])
            pieces.append(group[:size])
            group = group[size:]
    return [b"".join(pieces)] if chance.random() < 0.05 else pieces


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, 1000, 100)], ids=lambda seeds: str(seeds[0]))
@run
async def test_both_ways_come_to_the_same(seeds):
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        for seed in seeds:
            recipients = [f"{number}@example.org" for number in range(1 + seed % 3)]
            lmtp, buffered = seed % 2 == 1, int(seed % 17 == 0)
            pieces = script(seed, len(recipients), lmtp)
            mails = [Mail(MAILS[0], envelope="a@example.org", recipients=recipients) for _ in range(2)]
            long = await the_long_way(new_client(lmtp, buffered), mails[0], pieces)
            short = await the_short_way(new_client(lmtp, buffered), mails[1], pieces, dispatcher)
            if isinstance(short[0], list):
                as_dicts = [
                    {"recipient": recipient, "state": reply.state, "code": reply.code, "description": reply.text}
                    for recipient, reply in long[0].items()
                ]
                assert (as_dicts, *long[3:]) == (short[0], *short[3:]), (seed, pieces)
            else:
                assert long == short, (seed, pieces)
