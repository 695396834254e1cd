"""Failed logins: their replies wait, and nobody else does."""

from __future__ import annotations

import pytest
from smtp_tools import EHLO, plugin, run, serving

from mqcore.mail.smtp import logins
from mqcore.mail.smtp.logins import FailedLogins

RIGHT, WRONG = b"AUTH PLAIN AGEAcmlnaHQ=\r\n", b"AUTH PLAIN AGEAd3Jvbmc=\r\n"
HOUR = 3600.0


def authenticate(context, message, login, password):
    message.connection.authenticated = password == "right"


PLUGINS = {"10-login": plugin(authenticate=authenticate)}


def test_the_delay_doubles_up_to_30_seconds():
    failed = FailedLogins()
    assert [failed.count("192.0.2.1", n, 100.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert failed.count("192.0.2.1", 10**6, 100.0) == 30


def test_an_address_is_known_again():
    """Also by another connection, but not after a quarter of an hour."""
    failed = FailedLogins()
    for n in range(1, 4):
        failed.count("192.0.2.1", n, 100.0)
    assert failed.count("192.0.2.1", 1, 200.0) == 8
    assert failed.count("192.0.2.1", 1, 200.0 + logins.FORGET + 1) == 1
    assert failed.count("192.0.2.2", 1, 200.0) == 1
    assert failed.count("192.0.2.2", 3, 200.0) == 4, "by connection too"
    assert [failed.count("", n, 200.0) for n in (1, 2, 1)] == [1, 2, 1], "a Unix socket has no address"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("unknown", "unknown", True),
    ],
)
def test_who_counts_as_one(one, other, same):
    failed = FailedLogins()
    failed.count(one, 1, 100.0)
    assert failed.count(other, 1, 100.0) == (2 if same else 1)


def test_memory_is_bounded():
    """The network that failed least recently is forgotten."""
    failed = FailedLogins()
    for n in range(logins.MOST_NETWORKS + 5):
        failed.count(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1, 100.0)
        failed.count("192.0.2.1", 1, 100.0)
    assert len(failed._failures) == logins.MOST_NETWORKS
    assert failed.count("10.0.0.0", 1, 100.0) == 1
    assert failed.count("192.0.2.1", 1, 100.0) == 30


async def delays(it, *seconds):
    """Takes the place of the real ones; what was asked for."""
    asked = []
    await it.until(lambda: it.server)

    def count(peer, in_connection, now):
        asked.append((peer, in_connection))
        return seconds[min(len(asked), len(seconds)) - 1]

    it.server.host.failed_logins.count = count
    return asked


@run
async def test_the_reply_waits_and_what_is_behind_it():
    async with serving(PLUGINS, auth_without_tls=True) as it:
        asked = await delays(it, 0.01)
        client = await it.greeted()
        replies = await client.asks(WRONG + b"NOOP\r\n" + WRONG + RIGHT, 4)
    assert replies == ["535 5.7.8", "250 2.0.0", "535 5.7.8", "235 2.7.0"]
    assert asked == [("127.0.0.1", 1), ("127.0.0.1", 2)]


@run
async def test_a_login_that_is_right_never_waits():
    """Nor does anything else of other clients, however many guess."""
    async with serving(PLUGINS, auth_without_tls=True) as it:
        asked = await delays(it, HOUR)
        for n in range(50):
            guessing = await it.greeted()
            guessing.send(WRONG)
            await it.until(lambda: len(asked) == n + 1)  # noqa: B023
        client = await it.greeted()
        assert await client.asks(RIGHT, 1) == ["235 2.7.0"]
        assert it.gateway.report.refusals == {("authenticate", 535): 50}, "counted when they come, not when they are told"


@run
async def test_it_is_the_real_client_who_waits():
    """Not the balancer, nor who was in the connection before."""
    local = "127.0.0.0/8"
    async with serving(PLUGINS, auth_without_tls=True, proxy_from=local, xclient_from="192.0.2.7") as it:
        asked = await delays(it, 0.0)
        client = await it.connect()
        client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 25\r\n" + EHLO + WRONG)
        assert [(await client.reply())[:3] for _ in range(3)] == ["220", "250", "535"]
        client.send(b"XCLIENT ADDR=192.0.2.8\r\n" + EHLO + WRONG)
        assert [(await client.reply())[:3] for _ in range(3)] == ["220", "250", "535"]
    assert asked == [("192.0.2.7", 1), ("192.0.2.8", 1)]


@run
async def test_a_client_that_goes_cancels_its_reply():
    async with serving(PLUGINS, auth_without_tls=True) as it:
        asked = await delays(it, HOUR)
        client = await it.greeted()
        client.send(WRONG)
        await it.until(lambda: asked)
        client.leave()
        await it.until(lambda: not it.server.host.connections)


@run
async def test_a_client_that_sends_no_more_still_gets_it():
    async with serving(PLUGINS, auth_without_tls=True) as it:
        asked = await delays(it, 0.01)
        client = await it.greeted()
        client.send(WRONG)
        client.half_close()
        assert (await client.reply())[:9] == "535 5.7.8"
        assert await client.is_closed() and asked


@run
async def test_a_server_that_stops_does_not_wait():
    async with serving(PLUGINS, auth_without_tls=True) as it:
        asked = await delays(it, HOUR)
        client = await it.greeted()
        client.send(WRONG)
        await it.until(lambda: asked)
        it.gateway.stop()
        assert (await client.reply())[:9] == "421 4.3.2"
        assert await client.is_closed()


@pytest.mark.parametrize("code", [535, 454, 421])
@run
async def test_a_plugin_that_rejects_a_login(code):
    def refuse(context, message, login, password):
        message.reject(code, "5.7.0 no")

    async with serving({"10-login": plugin(authenticate=refuse)}, auth_without_tls=True) as it:
        asked = await delays(it, 0.0)
        client = await it.greeted()
        assert (await client.ask(RIGHT))[:3] == str(code)
        assert len(asked) == 1
        if code == 421:
            assert await client.is_closed()


@run
async def test_a_plugin_that_fails_is_no_wrong_guess():
    def fail(context, message, login, password):
        raise ValueError

    async with serving({"10-login": plugin(authenticate=fail)}, auth_without_tls=True) as it:
        asked = await delays(it, HOUR)
        client = await it.connect()
        await client.reply()
        await client.ask(EHLO)
        assert await client.asks(RIGHT, 1) == ["454 4.7.0"]
        assert not asked
