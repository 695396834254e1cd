"""The SMTP server on a real socket: clients that go away, or are too many, too slow, or too greedy; and its end."""

from __future__ import annotations

import asyncio
import gc

import pytest
from mail_tools import untraced
from smtp_tools import ALL, EHLO, MAIL, OPEN, RCPT, STAGES, TEXT, Holds, Serving, certificate, codes, plugin, run, serving

import mqcore
from mqcore.mail.smtp._connection import SmtpConnection

TLS = {"ssl": certificate().client, "server_hostname": "localhost"}

# Clients that go away


@pytest.mark.parametrize("stage", STAGES)
@run
async def test_a_client_that_goes_away_cancels_its_step(stage):
    holds = Holds(stage)
    async with serving({"10-hold": holds}) as it:
        client = await it.connect()
        client.send(ALL)
        await it.until(lambda: holds.held)
        client.leave()
        await it.until(lambda: holds.closed)
        ((context, message),) = holds.held
        assert stage != "message" or isinstance(message.error, mqcore.Cancelled)
        with pytest.raises(mqcore.NotHeld):
            context.continue_(message)
        await it.until(lambda: not it.server.host.connections)
        assert it.sink.mails == []
        assert it.gateway.report.counts.unfinished == (stage == "message")


@pytest.mark.parametrize("sent", [b"", b"EHLO", EHLO, EHLO + MAIL, OPEN, OPEN + b"half a mess"])
@run
async def test_a_client_that_goes_away_at_any_time(sent):
    holds = Holds("secure")
    async with serving({"10-close": holds}) as it:
        client = await it.connect()
        await client.ask(sent)
        client.leave()
        await it.until(lambda: holds.closed == 1 and not it.server.host.connections)


@run
async def test_what_is_being_stored_when_the_client_goes_away_is_stored_and_counted():
    async with serving() as it:
        it.sink.gate.clear()
        client = await it.greeted()
        client.send(ALL.removeprefix(EHLO))
        await it.until(it.sink.waits.is_set)
        client.leave()
        await it.until(lambda: not it.server.host.connections)
        it.sink.gate.set()
        await it.until(lambda: it.gateway.report.counts.unanswered == 1)
        assert len(it.sink.mails) == 1


@run
async def test_a_reply_that_comes_when_the_connection_is_gone_and_nobody_has_said_so_yet():
    async with serving() as it:
        await it.greeted()
        (connection,) = it.server.host.connections
        connection.transport.abort()
        connection.shut_down()
        assert connection.protocol.closed
        await it.until(lambda: not it.server.host.connections)


@run
async def test_the_step_of_close_may_be_held():
    def close(context, message):
        context.start_timer(0.01, context.continue_, message)
        return True

    async with serving({"10-close": plugin(close=close)}) as it:
        client = await it.greeted()
        client.leave()
        await it.until(lambda: not it.server.host.connections)


def connections_in_memory() -> int:
    return sum(type(one) is SmtpConnection for one in gc.get_objects())


@pytest.mark.parametrize("tls", [None, "starttls", "implicit"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("sent", [b"", b"QUIT\r\n", ALL.removeprefix(EHLO)])
@run
async def test_a_connection_that_is_gone_leaves_nothing_behind(tls, held, sent):
    """Nor does it wait for the garbage collector, which knows nothing of the big buffers of TLS."""
    gc.collect()
    gc.disable()
    try:
        holds = Holds("message" if held else "authenticate")
        async with serving({"10-hold": holds}, tls=tls) as it:
            for number in range(5):
                client = await it.greeted(**TLS if tls == "implicit" else {})
                if tls == "starttls":
                    await client.ask(b"STARTTLS\r\n")
                    await client.start_tls(certificate().client)
                    await client.ask(EHLO)
                client.send(sent)
                await it.until(lambda: holds.held or not (held and sent.startswith(MAIL)))
                client.leave()
                await it.until(lambda number=number: holds.closed > number)
                holds.held.clear()
            await it.until(lambda: connections_in_memory() == 0)
    finally:
        gc.enable()


# Limits


@run
async def test_no_more_mails_than_allowed_are_on_the_way():
    holds = Holds("message")
    async with serving({"10-hold": holds}, max_in_flight=2) as it:
        clients = [await it.greeted() for _ in range(5)]
        for client in clients:
            client.send(ALL.removeprefix(EHLO))
        await it.until(lambda: it.gateway.report.counts.read == 5)
        assert len(holds.held) == 2
        clients[-1].leave()  # one that waits
        await it.until(lambda: len(it.server.host.connections) == 4)
        while it.gateway.report.counts.stored < 4:
            assert len(holds.held) <= 2
            holds.release()
            await asyncio.sleep(0.001)
        assert it.gateway.report.counts.unfinished == 1


@run
async def test_many_that_wait_and_are_all_rejected_at_once():
    """One makes room for the next, again and again, without nesting."""
    held = []

    def message(context, mail):
        mail.reject(550, "no")
        if not held:
            held.append((context, mail))
            return True
        return False

    async with serving({"10-reject": plugin(message=message)}, max_in_flight=1) as it:
        clients = [await it.greeted() for _ in range(300)]
        for client in clients:
            client.send(ALL.removeprefix(EHLO))
        await it.until(lambda: it.gateway.report.counts.read == 300)
        ((context, mail),) = held
        context.continue_(mail)
        await it.until(lambda: it.gateway.report.counts.rejected == 300)


@run
async def test_too_many_connections(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.MAX_CONNECTIONS", 3)
    holds = Holds("secure")
    async with serving({"10-close": holds}) as it:
        clients = [await it.greeted() for _ in range(3)]
        extra = await it.connect()
        assert await extra.reply() == "421 4.3.2 too many connections; try again later"
        assert await extra.is_closed()
        clients[0].leave()
        await it.until(lambda: holds.closed == 1)
        await it.greeted()


@run
async def test_fewer_connections_are_asked_for():
    async with serving(max_connections=2) as it:
        for _ in range(2):
            await it.greeted()
        assert await (await it.connect()).reply() == "421 4.3.2 too many connections; try again later"


@pytest.mark.parametrize("tls", [None, "implicit"])
@run
async def test_connections_of_one_address(tls):
    options = {"ssl": certificate().client, "server_hostname": "localhost"} if tls else {}
    async with serving(max_connections_per_ip=2, tls=tls) as it:
        clients = [await it.greeted(**options) for _ in range(2)]
        if tls is None:
            extra = await it.connect()
            assert await extra.reply() == "421 4.7.0 too many connections from your network; try again later"
            assert await extra.is_closed()
        else:
            with pytest.raises((OSError, EOFError)):
                await it.greeted(**options)
        other = await it.connect(local_addr=("127.0.0.2", 0), **options)  # another one is not the worse for it
        assert (await other.reply()).startswith("220 ")
        clients[0].leave()
        await it.until(lambda: it.server.host.from_network["127.0.0.1"] == 1)
        await it.greeted(**options)
    assert it.server.host.from_network.total() == 0


@pytest.mark.parametrize(("one", "other", "same"), [
    ("192.0.2.1", "192.0.2.2", False),
    ("::ffff:192.0.2.1", "192.0.2.1", True),
    ("2001:db8::1", "2001:db8::ffff:1", True),
    ("2001:db8::1", "2001:db8:0:1::1", False),
    ("fe80::1%eth0", "fe80::2%eth1", True),
])
@run
async def test_networks(one, other, same):
    async with serving(max_connections_per_ip=1) as it:
        await it.greeted()
        assert (it.server.host.network_of(one) == it.server.host.network_of(other)) == same


@run
async def test_few_files(monkeypatch):
    """Under `ulimit -n 64` nobody was let in, as all of them were kept for other things."""
    monkeypatch.setattr("mqcore.mail.smtp.server.raise_file_limit", lambda wanted: 64)
    async with serving() as it:
        for _ in range(32):
            await it.greeted()
        assert (await (await it.connect()).reply()).startswith("421 4.3.2 ")


@run
async def test_a_flood_of_connections():
    async with serving() as it:
        for _ in range(20):
            for client in await asyncio.gather(*(it.connect() for _ in range(50))):
                client.leave()
        await it.until(lambda: not it.server.host.connections)
        await (await it.greeted()).asks(ALL.removeprefix(EHLO), 4)
        assert len(it.sink.mails) == 1


@run
async def test_a_flood_of_bad_commands():
    async with serving() as it:
        client = await it.greeted()
        client.send(b"X\r\n" * 100_000)
        replies = [await client.reply() for _ in range(22)]
        assert replies[-1] == "421 4.7.0 too many errors"
        assert await client.is_closed()


@run
async def test_what_a_client_sends_while_its_step_is_held_is_not_read_without_end():
    holds = Holds("mailfrom")
    async with serving({"10-hold": holds}) as it:
        client = await it.greeted()
        client.send(MAIL)
        await it.until(lambda: holds.held)
        (connection,) = it.server.host.connections
        client.send(b"NOOP\r\n" * 1_000_000)
        await it.until(lambda: connection.is_paused)
        await asyncio.sleep(0.05)
        assert connection.protocol.buffered < 1 << 20
        holds.release()
        assert codes([await client.reply(), await client.reply()]) == ["250 2.1.0", "250 2.0.0"]
        assert await client.is_closed()


@run
async def test_a_client_that_does_not_read_gets_no_more_replies(monkeypatch):
    async with serving() as it:
        client = await it.greeted()
        (connection,) = it.server.host.connections
        connection.transport.set_write_buffer_limits(high=0)
        connection.pause_writing()
        client.send(b"NOOP\r\n" * 50_000)
        await it.until(lambda: connection.is_paused)
        assert connection.protocol.buffered > 0
        connection.resume_writing()
        assert await client.reply() == "250 2.0.0 ok"


def allow(it: Serving, seconds: float) -> None:
    """The timeout of clients, once they have come so far: how long that takes is no matter of a test."""
    it.gateway.source.timeout = seconds
    it.server.configure()


@run
async def test_a_client_that_is_silent_for_too_long(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.SWEEP", 0.01)
    async with serving() as it:
        client = await it.greeted()
        allow(it, 0.05)
        assert await client.reply() == "421 4.4.2 you are too slow"
        assert await client.is_closed()


@run
async def test_a_client_that_sends_a_byte_now_and_then(monkeypatch):
    """It is never silent for long, and gets nowhere."""
    monkeypatch.setattr("mqcore.mail.smtp.server.SWEEP", 0.01)
    async with serving() as it:
        client = await it.greeted()
        allow(it, 0.1)
        late = asyncio.create_task(client.reply())
        while not late.done():
            client.send(b"x")
            await asyncio.sleep(0.01)
        assert await late == "421 4.4.2 you are too slow"


@run
async def test_the_time_that_a_plugin_takes_is_not_the_clients(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.SWEEP", 0.01)
    holds = Holds("message")
    async with serving({"10-hold": holds}) as it:
        client = await it.connect()
        client.send(ALL)
        await it.until(lambda: holds.held)
        allow(it, 0.05)
        await asyncio.sleep(0.2)
        allow(it, 300)
        holds.release()
        assert codes([await client.reply() for _ in range(6)])[-1] == "250 2.6.0"


@run
async def test_a_message_that_comes_one_byte_at_a_time():
    async with serving() as it:
        client = await it.opened()
        client.writer.transport.get_extra_info("socket").setsockopt(6, 1, 1)
        for byte in TEXT + b".\r\n":
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert codes([await client.reply()]) == ["250 2.6.0"]
        assert untraced(mail.mime for mail in it.sink.mails) == [TEXT]


@run
async def test_big_messages_beyond_what_memory_is_for(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.MAX_MESSAGE_BYTES", 1_000_000)
    big = b"x" * 70 + b"\r\n"
    async with serving() as it:
        first, second = await it.opened(), await it.opened()
        first.send(big * 8_000)
        await it.until(lambda: it.server.host.reserved > 500_000)
        second.send(big * 8_000)
        await it.until(lambda: any(one.protocol.receiver.fault for one in it.server.host.connections))
        await it.until(lambda: it.server.host.reserved < 1_000_000)
        assert await second.ask(b".\r\n") == "452 4.3.1 too many big messages at once; try again later"
        assert codes([await first.ask(b".\r\n")]) == ["250 2.6.0"]
        assert untraced(mail.mime for mail in it.sink.mails) == [big * 8_000]
        await it.until(lambda: it.server.host.reserved == 0)


def reserved_for(it, size):
    """Whether so many octets are counted, and perhaps those that end a message."""
    return size <= it.server.host.reserved <= size + 2 * len(b"\r\n\r\n.\r\n")


@run
async def test_messages_that_come_in_one_go_beyond_what_memory_is_for(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.MAX_MESSAGE_BYTES", 50_000)
    message = b"x" * 70 + b"\r\n"
    holds = Holds("message")
    async with serving({"10-hold": holds}) as it:
        first, second = await it.opened(), await it.opened()
        first.send(message * 600 + b".\r\n")
        await it.until(lambda: holds.held)
        assert reserved_for(it, 600 * len(message))
        assert await second.ask(message * 600 + b".\r\n") == "452 4.3.1 too many big messages at once; try again later"
        assert reserved_for(it, 600 * len(message))
        holds.release()
        assert codes([await first.reply()]) == ["250 2.6.0"]


BIG = (b"x" * 70 + b"\r\n") * 8_000


@pytest.mark.parametrize("rests", ["with the sink", "with plugins"])
@run
async def test_what_a_client_sent_that_is_gone_counts_until_it_is_let_go(rests):
    holds = Holds("message")
    async with serving({"10-hold": holds} if rests == "with plugins" else {}, max_in_flight=1) as it:
        it.sink.gate.clear()
        first, second = await it.opened(), await it.opened()
        first.send(BIG + b".\r\n")
        await it.until(lambda: it.gateway.in_flight)
        await it.until(lambda: holds.held or it.sink.waits.is_set())
        second.send(BIG + b".\r\n")
        await it.until(lambda: reserved_for(it, 2 * len(BIG)))
        if rests == "with the sink":
            first.leave()
            await it.until(lambda: len(it.server.host.connections) == 1)
            assert reserved_for(it, 2 * len(BIG))
        second.leave()  # which nobody has yet
        await it.until(lambda: reserved_for(it, len(BIG)))
        it.sink.gate.set()
        holds.release()
        await it.until(lambda: it.server.host.reserved == 0)


@run
async def test_what_was_not_received_to_its_end_is_let_go_at_once():
    holds = Holds("close")
    async with serving({"10-hold": holds}) as it:
        client = await it.opened()
        client.send(BIG)
        await it.until(lambda: it.server.host.reserved >= len(BIG))
        client.leave()
        await it.until(lambda: holds.held)
        (connection,) = it.server.host.connections
        assert connection.protocol.receiver is None and it.server.host.reserved == 0
        holds.release()


# The end


@run
async def test_stopping_lets_transactions_end_and_takes_no_more():
    holds = Holds("message")
    async with serving({"10-hold": holds}) as it:
        idle, held, sending = await it.greeted(), await it.greeted(), await it.opened()
        held.send(ALL.removeprefix(EHLO) + MAIL)
        await it.until(lambda: holds.held)
        it.gateway.stop()
        assert await idle.reply() == "421 4.3.2 this server is shutting down"
        assert await idle.is_closed()
        with pytest.raises(ConnectionError):
            await it.connect()
        holds.release()
        assert codes([await held.reply() for _ in range(5)])[-2:] == ["250 2.6.0", "421 4.3.2"]
        sending.send(TEXT + b".\r\n")
        await it.until(lambda: holds.held)
        holds.release()
        assert codes([await sending.reply(), await sending.reply()]) == ["250 2.6.0", "421 4.3.2"]
        assert len(it.sink.mails) == 2


@run
async def test_stopping_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.05)
    holds = Holds("message")
    async with serving({"10-hold": holds}) as it:
        held, sending = await it.greeted(), await it.opened()
        held.send(ALL.removeprefix(EHLO))
        await it.until(lambda: holds.held)
        it.gateway.stop()
        assert await sending.reply() == "421 4.3.2 this server is shutting down"
        assert codes([await held.reply() for _ in range(4)])[-1] == "421 4.3.2"
        await it.until(lambda: holds.closed == 2)
        assert it.sink.mails == []


@pytest.mark.parametrize("sent", [b"", ALL.removeprefix(EHLO)])
@run
async def test_stopping_takes_back_what_plugins_hold_at_the_very_end(monkeypatch, sent):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.01)
    held = []

    def close(context, message):
        held.append(message)
        return True

    async with serving({"10-close": plugin(close=close)}) as it:
        client = await it.greeted()
        if sent:
            it.sink.gate.clear()
            client.send(sent)
            await it.until(it.sink.waits.is_set)
        client.leave()
        await it.until(lambda: held)
    assert isinstance(held[0].error, mqcore.Cancelled)


@run
async def test_stopping_waits_for_what_is_being_stored(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.01)
    async with serving() as it:
        it.sink.gate.clear()
        client = await it.opened()
        client.send(TEXT + b".\r\n")
        await it.until(it.sink.waits.is_set)
        it.gateway.stop()
        await asyncio.sleep(0.1)
        it.sink.gate.set()
        assert codes([await client.reply(), await client.reply()]) == ["250 2.6.0", "421 4.3.2"]


@run
async def test_a_sink_that_fails_ends_the_server_and_loses_nothing():
    async with serving() as it:
        it.sink.error = "no space"
        client, idle = await it.opened(), await it.greeted()
        assert codes([await client.ask(TEXT + b".\r\n")]) == ["451 4.3.0"]
        assert codes([await client.reply(), await idle.reply()]) == ["421 4.3.2", "421 4.3.2"]
        await it.until(lambda: it.gateway.report.error == "no space")
        assert it.gateway.report.counts.unfinished == 1
        assert it.gateway.report.exit_code == 4


def reject_no(context, message):
    if message.recipient.startswith("no"):
        message.reject(550, "no")


@run
async def test_a_place_for_failed_mails_that_breaks_concerns_those_mails_alone():
    """Of a transaction that has some nothing is stored, as its client is told to come again; others get their 250."""

    async with serving({"10-no": plugin(message=reject_no)}, mixed=True) as it:
        it.sink.gate.clear()
        first = await it.opened()
        first.send(TEXT + b".\r\n")
        await it.until(it.sink.waits.is_set)
        good, mixed = await it.opened(), await it.greeted()
        it.failed.error = "no space"
        good.send(TEXT + b".\r\n")
        mixed.send(MAIL + RCPT + b"RCPT TO:<no@example.org>\r\nDATA\r\n" + TEXT + b".\r\n")
        await it.until(lambda: it.gateway.report.counts.read == 4)
        it.sink.gate.set()  # and what came meanwhile is one group
        assert codes([await first.reply(), await good.reply()]) == ["250 2.6.0"] * 2
        assert codes([await mixed.reply() for _ in range(5)])[-1] == "451 4.3.0"
        assert untraced(mail.mime for mail in it.sink.mails) == [TEXT] * 2
        assert it.gateway.report.error == "no space"
        assert (it.gateway.report.counts.continued, it.gateway.report.counts.unfinished) == (2, 2)


@run
async def test_a_sink_that_breaks_when_the_rejected_are_set_aside_makes_doubles_that_are_counted():
    async with serving({"10-no": plugin(message=reject_no)}, mixed=True) as it:
        it.sink.error = "no space"
        client = await it.greeted()
        client.send(MAIL + RCPT + b"RCPT TO:<no@example.org>\r\nRCPT TO:<nor@example.org>\r\nDATA\r\n" + TEXT + b".\r\n")
        assert codes([await client.reply() for _ in range(6)])[-1] == "451 4.3.0"
        assert [mail.recipient for mail in it.failed.mails] == ["no@example.org", "nor@example.org"]
        counts = it.gateway.report.counts
        assert (counts.rejected, counts.unfinished, counts.in_doubt) == (2, 1, 2)


@run
async def test_what_comes_while_the_disk_is_slow_is_stored_in_one_group():
    async with serving() as it:
        it.sink.gate.clear()
        clients = [await it.opened() for _ in range(20)]
        for client in clients:
            client.send(TEXT + b".\r\n")
        await it.until(lambda: it.gateway.report.counts.read == 20)
        it.sink.gate.set()
        for client in clients:
            assert codes([await client.reply()]) == ["250 2.6.0"]
        assert len(it.sink.groups) <= 3
