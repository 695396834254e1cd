"""What every kind of place passes: each source alone, each sink alone, and every pair. A new kind is a function here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from amqp_broker import Broker, serving
from mail_tools import make_maildir, read_maildir, read_mbox, untraced
from sending_tools import ListSource, NextServer
from smtp_tools import Client, ListSink, run

import mqcore
from mqcore.mail import (
    FailedSink,
    Gateway,
    LmtpSource,
    Mail,
    MaildirSink,
    MaildirSource,
    MboxSink,
    MboxSource,
    NullSink,
    Report,
    Sink,
    SmtpSink,
    SmtpSource,
    Verdict,
)
from mqcore.mail.amqp.body import read_body
from mqcore.mail.amqp.sink import AmqpSink

MAILS = [b"Subject: %d\n\nhello\n" % number for number in range(20)]


# Sources: each offers these mails, in this order


async def from_list(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
    source = ListSource(mails, "a@example.org", "b@example.org")
    source.path = folder / "list"
    return source, None


async def from_mbox(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
    path = folder / "mbox"
    path.write_bytes(b"".join(b"From a@example.org Tue Nov 24 05:31:47 2026\n%b\n" % mail for mail in mails))
    return MboxSource(str(path)), None


async def from_maildir(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
    path = folder / "maildir"
    if not path.exists():
        make_maildir(path, mails)
    return MaildirSource(str(path)), None


async def from_smtp(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    source = SmtpSource("//127.0.0.1:0", one_recipient=True)

    async def send() -> list[str]:
        client = Client(*await asyncio.open_connection("127.0.0.1", source.port))
        replies = [await client.reply(), await client.ask(b"HELO client.example\r\n")]
        for mail in mails:
            for command in (b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.org>\r\n", b"DATA\r\n"):
                replies.append(await client.ask(command))
            replies.append(await client.ask(mail.replace(b"\n", b"\r\n") + b".\r\n"))
        client.leave()
        return [reply[:3] for reply in replies[5::4]]

    return source, send


async def from_lmtp(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    source = LmtpSource(f"unix:{folder}/lmtp")

    async def send() -> list[str]:
        client = Client(*await asyncio.open_unix_connection(folder / "lmtp"))
        replies = [await client.reply(), await client.ask(b"LHLO client.example\r\n")]
        for mail in mails:
            content = mail.replace(b"\n", b"\r\n")
            client.send(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n%b.\r\n" % content)
            replies += [await client.reply() for _ in range(4)]
        client.leave()
        return [reply[:3] for reply in replies[5::4]]

    return source, send


SOURCES = [from_list, from_mbox, from_maildir, from_smtp, from_lmtp]


# Sinks: each, and what it has got


class OwnSink(Sink):
    url = "own:"

    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def deliver(self, mails):
        await asyncio.sleep(0)
        self.mails += [mail.mime for mail in mails]
        return [Verdict.accepted()] * len(mails)


@contextlib.asynccontextmanager
async def to_list(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    sink = ListSink()
    yield sink, lambda: [mail.mime for mail in sink.mails]


@contextlib.asynccontextmanager
async def to_own(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    sink = OwnSink()
    yield sink, lambda: sink.mails


@contextlib.asynccontextmanager
async def to_null(folder: Path, source: Any) -> AsyncIterator[tuple[Any, None]]:
    yield NullSink(""), None


@contextlib.asynccontextmanager
async def to_mbox(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    yield MboxSink(str(folder / "out.mbox")), lambda: read_mbox(folder / "out.mbox")


@contextlib.asynccontextmanager
async def to_maildir(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    yield MaildirSink(str(folder / "out")), lambda: read_maildir(folder / "out")


NEXT: dict[Path, NextServer] = {}
"""The next server of each test, which outlives a run."""


@contextlib.asynccontextmanager
async def to_smtp(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    server = NEXT.setdefault(folder, NextServer())
    await server.start()
    try:
        yield SmtpSink.open(f"//127.0.0.1:{server.port}", source), lambda: [content for *_, content in server.mails]
    finally:
        await server.stop()


QUEUES: dict[Path, Broker] = {}
"""The broker of each test, which outlives a run."""


@contextlib.asynccontextmanager
async def to_amqp(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    it = QUEUES.setdefault(folder, Broker())
    it.outcome = lambda number: "ack"
    async with serving(it):
        sink = AmqpSink.open(f"//guest:guest@127.0.0.1:{it.port}?queue=q", source)
        yield sink, lambda: [read_body(body).mime for _, body in it.sent]


SINKS = [to_list, to_own, to_null, to_mbox, to_maildir, to_smtp, to_amqp]
REMEMBERING = [to_mbox, to_maildir, to_smtp, to_amqp]
"""Those that know in a second run what they have."""


async def move(
    make_source: Any, make_sink: Any, folder: Path, hook: Any = None, *, stop_after: int = 0, **options: Any
) -> tuple[Report, list[bytes] | None, list[str] | None, list[Mail]]:
    """One run: its report, what the sink has got by now, what clients were told, and what was set aside."""
    source, send = await make_source(folder, MAILS)
    seen = 0

    def in_message(context, mail):
        nonlocal seen
        seen += 1
        if mail.recipient is None:
            mail.envelope, mail.recipient = "a@example.org", "b@example.org"
        if stop_after and seen == stop_after:
            gateway.stop()
        return hook(context, mail) if hook else False

    plugins = mqcore.Plugins()
    plugins.add("10-test", SimpleNamespace(mq_smtp_in_message=in_message))
    failed = ListSink()
    with contextlib.closing(source), mqcore.Dispatcher(plugins) as dispatcher:
        async with make_sink(folder, source) as (sink, read):
            with contextlib.closing(sink):
                gateway = Gateway(dispatcher, source, sink, FailedSink(failed, source.url), **options)
                running = asyncio.create_task(gateway.run())
                told = None
                if send is not None:
                    told = await send()
                    gateway.stop()
                report = await running
                got = None if read is None else [*(read() if send is None else untraced(read()))]
    if got is not None:
        got = sorted(mail.replace(b"\r\n", b"\n") for mail in got)
    counts = report.counts
    ends = (counts.present, counts.continued, counts.completed, counts.failed, counts.rejected, counts.unfinished)
    assert counts.read == sum(ends)
    assert gateway.in_flight == gateway.bytes == 0
    return report, got, told, failed.mails


every_pair = pytest.mark.parametrize(
    ("source", "sink"), [pytest.param(a, b, id=f"{a.__name__} {b.__name__}") for a in SOURCES for b in SINKS]
)


@every_pair
@run
async def test_every_mail_arrives_once(source, sink, tmp_path):
    report, got, told, failed = await move(source, sink, tmp_path)
    assert report.counts.continued == len(MAILS) and report.error is None and report.exit_code == 0
    assert got is None or got == sorted(MAILS)
    assert told is None or told == ["250"] * len(MAILS)
    assert failed == []


@every_pair
@run
async def test_no_more_than_allowed_is_on_the_way(source, sink, tmp_path):
    held: set[Mail] = set()
    most = 0

    def hold(context, mail):
        nonlocal most
        held.add(mail)
        most = max(most, len(held))
        context.start_timer(0.001, go_on, context, mail)
        return True

    def go_on(context, mail):
        held.discard(mail)
        context.continue_(mail)

    report, got, *_ = await move(source, sink, tmp_path, hold, max_in_flight=3)
    assert report.counts.continued == len(MAILS) and 1 <= most <= 3
    assert got is None or got == sorted(MAILS)


@every_pair
@run
async def test_what_fails_or_is_rejected_is_told_or_set_aside(source, sink, tmp_path):
    def refuse(context, mail):
        if b"Subject: 3" in mail.mime:
            mail.reject(550, "5.7.1 no")
        if b"Subject: 5" in mail.mime:
            raise ValueError("a bug")

    report, got, told, failed = await move(source, sink, tmp_path, refuse)
    assert (report.counts.continued, report.counts.rejected, report.counts.failed) == (len(MAILS) - 2, 1, 1)
    assert got is None or got == sorted(mail for number, mail in enumerate(MAILS) if number not in (3, 5))
    if told is None:
        assert sorted(mail.mime for mail in failed) == [MAILS[3], MAILS[5]]
    else:
        assert (told[3], told[5]) == ("550", "451") and failed == []


@pytest.mark.parametrize("source", [from_mbox, from_maildir])
@pytest.mark.parametrize("sink", REMEMBERING)
@run
async def test_stopped_and_run_again_every_mail_arrives_once(source, sink, tmp_path):
    first, *_ = await move(source, sink, tmp_path, stop_after=7, max_in_flight=5)
    assert 0 < first.counts.stored < len(MAILS)
    second, got, *_ = await move(source, sink, tmp_path)
    assert (second.counts.present, got) == (first.counts.stored, sorted(MAILS))
