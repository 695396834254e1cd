"""The real client behind a balancer or a proxy: PROXY, XCLIENT and XFORWARD, from those who are trusted and from strangers."""

from __future__ import annotations

import asyncio

import pytest
from smtp_tools import ALL, EHLO, TEXT, certificate, plugin, run, serving

from mqcore.mail.smtp import proxied
from mqcore.mail.smtp.networks import Networks

PROXY = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 25\r\n"
LOCAL = "127.0.0.0/8"
STRANGE = "10.0.0.0/8"


class Seen:
    """What plugins see of connections."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def mq_smtp_in_connect(self, context, message):
        self.told.append(("connect", message.connection.peer))
        message.connection.data["mark"] = 1

    def mq_smtp_in_close(self, context, message):
        self.told.append(("close", message.connection.peer))

    def mq_smtp_in_message(self, context, message):
        self.told.append(("message", message.connection.peer))
        self.forwarded = message.connection.forwarded


def peers(mail: bytes) -> str:
    return mail.split(b"\r\n")[0].decode().partition("(")[2].rstrip(")")


@pytest.mark.parametrize("pieces", ["whole", "alone", "bytes"])
@run
async def test_the_client_is_the_one_that_the_balancer_names(pieces):
    seen = Seen()
    async with serving({"10-seen": seen}, proxy_from=LOCAL) as it:
        client = await it.connect()
        text = PROXY + ALL if pieces == "whole" else PROXY
        for at in range(0, len(text), 1 if pieces == "bytes" else len(text)):
            client.send(text[at : at + (1 if pieces == "bytes" else len(text))])
            await asyncio.sleep(0)
        assert (await client.reply()).startswith("220 ")
        if pieces != "whole":
            client.send(ALL)
        replies = [await client.reply() for _ in range(5)]
        assert replies[-1].startswith("250 2.6.0 ")
        assert peers(it.sink.mails[0].mime) == "[192.0.2.7]"
    assert seen.told[:2] == [("connect", "192.0.2.7"), ("message", "192.0.2.7")]


@pytest.mark.parametrize("text", [b"EHLO x\r\n", b"PROXY TCP4 x\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", PROXY[:20]])
@run
async def test_a_balancer_that_names_nobody(text):
    """It is not heard, and it does not learn why."""
    seen = Seen()
    async with serving({"10-seen": seen}, proxy_from=LOCAL) as it:
        client = await it.connect()
        client.send(text)
        refusals = it.gateway.refusals.counts
        if text == PROXY[:20]:
            client.half_close()
        assert await client.is_closed()
        assert dict(refusals) == {("proxy", 421): 1}
    assert seen.told == []


@run
async def test_a_balancer_that_says_nothing(monkeypatch):
    monkeypatch.setattr(proxied, "TIMEOUT", 0.05)
    async with serving(proxy_from=LOCAL) as it:
        client = await it.connect()
        assert await client.reader.read() == b""
        other = await it.connect()
        other.half_close()  # as a check of its health does
        assert await other.reader.read() == b""


@pytest.mark.parametrize("text", [b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"])
@run
async def test_a_balancer_that_speaks_for_itself(text):
    seen = Seen()
    async with serving({"10-seen": seen}, proxy_from=LOCAL) as it:
        client = await it.connect()
        client.send(text)
        assert (await client.reply()).startswith("220 ")
    assert seen.told == [("connect", "127.0.0.1"), ("close", "127.0.0.1")]


@pytest.mark.parametrize("trusted", [None, STRANGE])
@run
async def test_a_stranger_names_nobody(trusted):
    """What it says is no command; it is not another client then, and nobody waits for a header."""
    seen = Seen()
    async with serving({"10-seen": seen}, proxy_from=trusted, xclient_from=trusted, xforward_from=trusted) as it:
        client = await it.connect()
        assert (await client.reply()).startswith("220 ")
        assert (await client.ask(PROXY)).startswith("500 5.5.1 ")
        assert "XCLIENT" not in (hello := await client.ask(EHLO)) and "XFORWARD" not in hello
        assert (await client.ask(b"XCLIENT ADDR=192.0.2.7\r\n")).startswith("550 5.7.0 ")
        assert (await client.ask(b"XFORWARD ADDR=192.0.2.7\r\n")).startswith("550 5.7.0 ")
    assert {peer for _, peer in seen.told} == {"127.0.0.1"}


@run
async def test_no_second_header_and_none_in_the_middle():
    seen = Seen()
    async with serving({"10-seen": seen}, proxy_from=LOCAL) as it:
        client = await it.connect()
        client.send(PROXY + PROXY.replace(b"192.0.2.7", b"192.0.2.8") + EHLO)
        assert (await client.reply()).startswith("220 ")
        assert (await client.reply()).startswith("500 5.5.1 ")
        assert (await client.reply()).startswith("250-")
        assert (await client.ask(PROXY)).startswith("500 5.5.1 ")
    assert {peer for _, peer in seen.told} == {"192.0.2.7"}


@run
async def test_what_is_trusted_is_the_address_that_the_balancer_names():
    """Not the balancer's own: whoever comes through it could be anybody."""
    for trusted, offered in ((LOCAL, False), ("192.0.2.0/24", True)):
        async with serving(proxy_from=LOCAL, xclient_from=trusted, xforward_from=trusted) as it:
            client = await it.connect()
            client.send(PROXY)
            await client.reply()
            hello = await client.ask(EHLO)
            assert ("XCLIENT" in hello) == ("XFORWARD" in hello) == offered
            reply = await client.ask(b"XCLIENT ADDR=127.0.0.1\r\n")
            assert reply.startswith("220 " if offered else "550 ")
            if offered:  # and that is fixed then
                assert "XCLIENT" in await client.ask(EHLO)


@pytest.mark.parametrize("tls", [None, "implicit"])
@run
async def test_limits_count_the_real_clients(tls):
    options = {"ssl": certificate().client, "server_hostname": "localhost"}

    async def arrive(it, address: bytes):
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(PROXY.replace(b"192.0.2.7", address))
        try:
            if tls:
                await writer.start_tls(options["ssl"], server_hostname="localhost")
            line = await reader.readline()
        except (ConnectionError, OSError):
            line = b""
        return writer, line[:3].decode()

    async with serving(proxy_from=LOCAL, max_connections_per_ip=2, tls=tls) as it:
        clients = [await arrive(it, address) for address in (b"192.0.2.1", b"192.0.2.1", b"192.0.2.1", b"192.0.2.2")]
        assert [said for _, said in clients] == ["220", "220", "421" if tls is None else "", "220"]
        clients[0][0].transport.abort()
        await it.until(lambda: it.server.host.from_network["192.0.2.1"] == 1)
        clients.append(await arrive(it, b"192.0.2.1"))
        assert clients[-1][1] == "220"
        for writer, _ in clients:
            writer.transport.abort()
        await it.until(lambda: not it.server.host.from_network)


@run
async def test_a_stranger_who_is_one_too_many_is_told_so():
    async with serving(proxy_from=STRANGE, max_connections=1) as it:
        await it.greeted()
        client = await it.connect()
        assert (await client.reply()).startswith("421 4.3.2 too many connections")


@run
async def test_xclient_is_another_client():
    seen = Seen()
    async with serving({"10-seen": seen}, xclient_from=LOCAL, max_connections_per_ip=1) as it:
        client = await it.greeted()
        assert (await client.ask(b"XCLIENT ADDR=192.0.2.7 NAME=client.example HELO=there\r\n")).startswith("220 ")
        assert (await client.ask(EHLO)).startswith("250-")
        client.send(ALL.removeprefix(EHLO))
        assert (await client.asks(b"", 4))[-1] == "250 2.6.0"
        assert peers(it.sink.mails[0].mime) == "[192.0.2.7]"
        other = await it.greeted()
        assert (await other.ask(b"XCLIENT ADDR=192.0.2.7\r\n")).startswith("421 4.7.0 too many connections")
        assert await other.is_closed()
        third = await it.greeted()
        assert (await third.ask(b"XCLIENT ADDR=IPV6:2001:db8::7\r\n")).startswith("220 ")
    begin = [("connect", "127.0.0.1"), ("close", "127.0.0.1"), ("connect", "192.0.2.7"), ("message", "192.0.2.7")]
    assert seen.told[:4] == begin
    assert sum(stage == "connect" for stage, _ in seen.told) + 1 == sum(stage == "close" for stage, _ in seen.told)


@run
async def test_a_plugin_may_refuse_the_client_that_xclient_names():
    def connect(context, message):
        assert message.connection.data == {} and message.data == {}
        message.connection.data["mark"] = message.data["mark"] = 1
        if message.connection.peer == "192.0.2.66":
            message.reject(554, "5.7.1 not you")

    async with serving({"10-connect": plugin(connect=connect)}, xclient_from=LOCAL) as it:
        client = await it.greeted()
        assert (await client.ask(b"XCLIENT ADDR=192.0.2.66\r\n")) == "554 5.7.1 not you"
        assert (await client.ask(EHLO)) == "554 5.7.1 not you"


@run
async def test_xforward_tells_plugins_and_changes_nothing_else():
    seen = Seen()
    async with serving({"10-seen": seen}, xforward_from=LOCAL) as it:
        client = await it.greeted()
        assert (await client.ask(b"XFORWARD ADDR=192.0.2.7 HELO=there IDENT=[UNAVAILABLE]\r\n")).startswith("250 ")
        client.send(ALL.removeprefix(EHLO))
        assert (await client.asks(b"", 4))[-1] == "250 2.6.0"
        assert seen.forwarded == {"addr": "192.0.2.7", "helo": "there", "ident": None}
        assert peers(it.sink.mails[0].mime) == "[127.0.0.1]"
        client.send(ALL.removeprefix(EHLO))
        assert (await client.asks(b"", 4))[-1] == "250 2.6.0"
        assert seen.forwarded is None
    assert {peer for _, peer in seen.told} == {"127.0.0.1"}
    assert TEXT in it.sink.mails[0].mime


@run
async def test_a_mail_keeps_what_xforward_said_of_it():
    mails = []

    def note(context, mail):
        mails.append(mail)

    async with serving({"10-note": plugin(message=note)}, xforward_from=LOCAL) as it:
        client = await it.greeted()
        for said in (b"XFORWARD ADDR=192.0.2.7\r\n", b"XFORWARD ADDR=192.0.2.8\r\n", b"NOOP\r\n"):
            assert (await client.ask(said)).startswith("250 ")
            client.send(ALL.removeprefix(EHLO))
            assert (await client.asks(b"", 4))[-1] == "250 2.6.0"
        assert [mail.connection.forwarded for mail in mails] == [{"addr": "192.0.2.7"}, {"addr": "192.0.2.8"}, None]
        one, other, _ = (mail.connection for mail in mails)
        assert one.id == other.id and one.data is other.data and one.transport is other.transport is not None
        client.leave()
        await it.until(lambda: not it.server.host.connections)
        assert one.transport is other.transport is None


@pytest.mark.parametrize("text", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8,,", "localhost"])
def test_what_is_no_network(text):
    with pytest.raises(ValueError, match="--proxy-from .*; write networks as 10.0.0.0/8,2001:db8::/32"):
        Networks("proxy-from", text)


def test_networks():
    networks = Networks("proxy-from", "10.0.0.0/8, 192.0.2.7,2001:db8::/32")
    assert all(peer in networks for peer in ("10.1.2.3", "192.0.2.7", "::ffff:10.1.2.3", "2001:db8::7", "2001:db8::7%eth0"))
    assert not any(peer in networks for peer in ("", "11.0.0.1", "192.0.2.8", "::1", "2001:db9::1"))
    assert "" not in Networks("proxy-from", None) and not Networks("proxy-from", None)
