"""STARTTLS of the next server: what becomes of mails when it is offered, refused, or breaks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from sending_tools import FailedList, ListSource
from smtp_tools import certificate, run, serving

import mqcore
from mqcore.mail import FailedSink, Gateway
from mqcore.mail.report import Report
from mqcore.mail.smtp.sink import SmtpSink
from mqcore.mail.smtp.upstream import CLEAR_AFTER, Health

TEXT = b"Subject: hello\r\n\r\nhello\r\n"
MESSAGE = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n", TEXT + b".\r\n"


class TlsServer:
    """Offers STARTTLS, and does with it what `starttls` says: works, refused, closes, garbage, silent, injected, or none, which
    offers none; `after` is what it says to EHLO under TLS. `mails` has, for each, whether it came by TLS."""

    def __init__(self, starttls: str, after: str = "250 mx") -> None:
        self.starttls = starttls
        self.after = after
        self.mails: list[bool] = []
        self.tried = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await self.talk(reader, writer)
        writer.close()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = False
        writer.write(b"220 mx\r\n")
        while line := (await reader.readuntil(b"\r\n")).rstrip():
            match line[:4]:
                case b"EHLO" if tls:
                    writer.write(self.after.encode() + b"\r\n")
                case b"EHLO":
                    writer.write(b"250 mx\r\n" if self.starttls == "none" else b"250-mx\r\n250 STARTTLS\r\n")
                case b"STAR":
                    self.tried += 1
                    if not await self.start_tls(reader, writer):
                        return
                    tls = self.starttls == "works"
                case b"DATA":
                    writer.write(b"354 go\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    self.mails.append(tls)
                    writer.write(b"250 ok\r\n")
                case b"QUIT":
                    return
                case _:
                    writer.write(b"250 ok\r\n")

    async def start_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        match self.starttls:
            case "works":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate().file)
                writer.write(b"220 go\r\n")
                await writer.start_tls(context)
                return True
            case "refused":
                writer.write(b"454 4.7.0 no TLS now\r\n")
                return True
            case "garbage":
                writer.write(b"220 go\r\n")
                await reader.read(1)
                writer.write(b"no TLS, really\r\n" * 10)
            case "injected":
                writer.write(b"220 go\r\n250 evil\r\n")
            case "silent":
                writer.write(b"220 go\r\n")
            case "closes":
                return False
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
        return False


@contextlib.asynccontextmanager
async def tls_server(*arguments: str) -> AsyncIterator[TlsServer]:
    it = TlsServer(*arguments)
    async with await asyncio.start_server(it.serve, "127.0.0.1", 0) as server:
        it.port = server.sockets[0].getsockname()[1]
        yield it


class Clock:
    """A loop's time that a test may put forward, as far as the health of a server goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for name in ("starttls_failed", "is_clear", "next_change"):
            monkeypatch.setattr(Health, name, self._later(getattr(Health, name)))

    def _later(self, method):
        return lambda health, now, *rest: method(health, now + self.ahead, *rest)


BROKEN = ["refused", "closes", "garbage", "injected", "silent"]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.outgoing.CONNECT_TIMEOUT", 0.3)


async def deliver(server: TlsServer, folder, count: int = 1, **options: str) -> Report:
    """From a file."""
    plugins = mqcore.Plugins()
    source, failed = ListSource([TEXT] * count, "a@example.org", "b@example.org"), FailedList(folder)
    sink = SmtpSink(f"//127.0.0.1:{server.port}", source=folder / "mbox", **options)
    with contextlib.closing(sink), mqcore.Dispatcher(plugins) as dispatcher:
        return await Gateway(dispatcher, source, sink, FailedSink(failed, source.url), max_in_flight=1).run()


@contextlib.asynccontextmanager
async def relaying(server: TlsServer, **options: str):
    async with serving(sink=SmtpSink(f"//127.0.0.1:{server.port}", **options), one_recipient=True) as it:

        async def send() -> str:
            client = await it.greeted()
            await client.asks(MESSAGE[0], 3)
            return await client.ask(MESSAGE[1])

        yield SimpleNamespace(send=send, counts=it.gateway.report.counts)


# Where it is sound


@pytest.mark.parametrize(("level", "tls"), [("may", True), ("require", True), ("verify", True), ("none", False)])
@run
async def test_tls_that_works(level, tls, tmp_path, monkeypatch):
    trusting = certificate().client
    monkeypatch.setattr("ssl.create_default_context", lambda: trusting)
    async with tls_server("works") as server:
        report = await deliver(server, tmp_path, 3, tls_out=level)
        assert server.mails == [tls] * 3
    assert (report.counts.stored, report.counts.in_clear) == (3, 0)


@run
async def test_no_tls_is_offered(tmp_path):
    async with tls_server("none") as server:
        report = await deliver(server, tmp_path)
        assert server.mails == [False]
    assert (report.counts.stored, report.counts.in_clear) == (1, 0)


# Where it is not


@pytest.mark.parametrize("level", ["require", "verify"])
@pytest.mark.parametrize("starttls", ["none", *BROKEN])
@run
async def test_no_mail_without_the_tls_that_must_be(starttls, level, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.001,) * 2)
    async with tls_server(starttls) as server:
        for _ in range(2):
            report = await deliver(server, tmp_path, tls_out=level)
            assert report.error.startswith(f"cannot reach smtp://127.0.0.1:{server.port}: ")
            assert report.exit_code == 4 and report.counts.unfinished == 1
            clock.ahead += 2 * CLEAR_AFTER
        async with relaying(server, tls_out=level) as it:
            assert (await it.send()).startswith("451 4.4.2 cannot reach the next server: ")
        assert server.mails == []


@run
async def test_a_certificate_that_is_not_trusted(tmp_path):
    """Trying again would not help."""
    async with tls_server("works") as server:
        report = await deliver(server, tmp_path, tls_out="verify")
        assert "CERTIFICATE_VERIFY_FAILED" in report.error
        assert server.mails == [] and server.tried == 1


@pytest.mark.parametrize("starttls", BROKEN)
@run
async def test_from_a_file_it_goes_in_the_clear_when_that_has_lasted(starttls, tmp_path, monkeypatch, caplog):
    """The first try is put off."""
    clock = Clock(monkeypatch)
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        clock.ahead += seconds

    monkeypatch.setattr("mqcore.mail.smtp.pool.asyncio.sleep", sleep)
    async with tls_server(starttls) as server:
        report = await deliver(server, tmp_path, 3)
        assert server.mails == [False] * 3
    assert sleeps[:5] == [1.0, 5.0, 30.0, 60.0, 120.0]
    assert CLEAR_AFTER - 5 < sum(sleeps) <= CLEAR_AFTER + 0.01
    assert (report.counts.stored, report.counts.in_clear, report.exit_code) == (3, 3, 0)
    assert f"STARTTLS of smtp://127.0.0.1:{server.port} has failed for 300 s" in caplog.text


@pytest.mark.parametrize("starttls", BROKEN)
@run
async def test_a_client_is_told_to_come_again_until_that_has_lasted(starttls, monkeypatch, caplog):
    clock = Clock(monkeypatch)
    async with tls_server(starttls) as server, relaying(server) as it:
        for ahead in (0, CLEAR_AFTER - 5):
            clock.ahead = ahead
            assert (await it.send()).startswith("451 4.4.2 cannot reach the next server: STARTTLS ")
        assert server.mails == [] and server.tried == 3  # once at the start, to see what it offers
        clock.ahead = CLEAR_AFTER
        assert (await it.send()).startswith("250 ")
        assert (await it.send()).startswith("250 ")
        assert server.mails == [False] * 2 and server.tried == 4
        assert it.counts.in_clear == 2
    assert caplog.text.count("mails go in the clear") == 1


@run
async def test_tls_is_tried_again_and_used_when_it_works_again(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr("mqcore.mail.smtp.pool.IDLE_TIMEOUT", 0.0)
    async with tls_server("refused") as server, relaying(server) as it:
        assert (await it.send()).startswith("451 ")
        clock.ahead = CLEAR_AFTER
        assert (await it.send()).startswith("250 ")
        server.starttls = "works"
        assert (await it.send()).startswith("250 ")
        assert server.mails == [False] * 2
        clock.ahead = 2 * CLEAR_AFTER + 1
        assert (await it.send()).startswith("250 ")
        assert server.mails == [False, False, True]
        server.starttls = "refused"
        assert (await it.send()).startswith("451 ")  # it begins anew
        assert it.counts.in_clear == 2


@run
async def test_a_server_that_refuses_us_under_tls(monkeypatch):
    async with tls_server("works", "554 no") as server, relaying(server) as it:
        assert await it.send() == "451 4.4.2 cannot reach the next server: after STARTTLS it says 554 no"
        assert server.mails == []
