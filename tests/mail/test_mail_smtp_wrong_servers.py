"""Next servers that do each of many things wrong: nothing is lost, and what is there twice was in doubt and is counted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from mail_tools import untraced
from sending_tools import FailedList, ListSource
from smtp_tools import run, serving
from wrong_server import CASES, wrong_server

import mqcore
from mqcore.mail import FailedSink, Gateway
from mqcore.mail.smtp.sink import LmtpSink, SmtpSink

TIMES = 3
RECIPIENTS = ["b@example.org", "c@example.org"]
MAILS = [b"Subject: %d\r\n\r\n" % number + b"x" * 70 + b"\r\n" for number in range(4)]
BIG = [MAILS[0] + (b"x" * 70 + b"\r\n") * 100_000]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.01,) * 20)
    for name in ("CONNECT_TIMEOUT", "COMMAND_TIMEOUT", "ANSWER_TIMEOUT"):
        monkeypatch.setattr(f"mqcore.mail.smtp.outgoing.{name}", 0.3)
    monkeypatch.setattr("mqcore.mail.smtp.pool.MORE_AFTER", 0.0)


def mails_for(name: str) -> list[bytes]:
    return BIG if name == "250 before it has all" else MAILS


def check(server, mails, counts) -> None:
    got = {(len(content), content[:20], recipient) for content, recipient in server.got}
    assert got == {(len(mail), mail[:20], recipient) for mail in mails for recipient in RECIPIENTS}
    assert server.doubles <= counts.in_doubt * len(RECIPIENTS)
    assert server.times < TIMES or server.case.stage == "rset"  # which nobody says where nobody is refused


def test_there_are_cases():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
@run
async def test_from_a_file(name, tmp_path):
    """All at once, over several connections."""
    mails = mails_for(name)

    def to_both(context, message):
        message.recipients = list(RECIPIENTS)

    plugins = mqcore.Plugins()
    plugins.add("10-to", SimpleNamespace(mq_smtp_in_message=to_both))
    source, failed = ListSource(mails, "a@example.org", None), FailedList(tmp_path)
    async with wrong_server(CASES[name], TIMES) as server:
        kind = LmtpSink if server.case.lmtp else SmtpSink
        sink = kind(f"//127.0.0.1:{server.port}", source=tmp_path / "mbox")
        with mqcore.Dispatcher(plugins) as dispatcher:
            for _ in range(4):  # a run that could not reach the server is made again
                report = await Gateway(dispatcher, source, sink, FailedSink(failed, source.url), max_in_flight=1).run()
                if report.error is None:
                    break
        sink.close()
        check(server, mails, report.counts)
    assert report.error is None and failed.mails == []
    assert report.counts.stored == len(mails)


@pytest.mark.parametrize("name", CASES)
@run
async def test_from_a_client(name):
    """It sends each mail again until it gets its 250."""
    mails = mails_for(name)
    async with wrong_server(CASES[name], TIMES) as server:
        kind = LmtpSink if server.case.lmtp else SmtpSink
        async with serving(sink=kind(f"//127.0.0.1:{server.port}"), mixed=True) as it:
            for mail in mails:
                for _ in range(20):
                    client = await it.greeted()
                    await client.asks(
                        b"MAIL FROM:<a@example.org>\r\n"
                        + b"".join(b"RCPT TO:<%b>\r\n" % recipient.encode() for recipient in RECIPIENTS)
                        + b"DATA\r\n",
                        2 + len(RECIPIENTS),
                    )
                    reply = await client.ask(mail + b".\r\n")
                    client.leave()
                    if reply.startswith("250 "):
                        break
                    await asyncio.sleep(0)
                assert reply.startswith("250 "), reply
            aside = [(mail.origin.mime, mail.recipient) for mail in it.failed.mails]
            server.got, aside = ([(text, to) for mail, to in got for text in untraced([mail])] for got in (server.got, aside))
            server.got += [one for one in aside if one not in server.got]
            check(server, mails, it.gateway.report.counts)


IN_TRANSACTION = [name for name, case in CASES.items() if case.stage not in ("greeting", "ehlo")]


@pytest.mark.parametrize("name", IN_TRANSACTION)
@run
async def test_on_a_connection_that_was_used_before(name, tmp_path):
    """Where a mail goes its short way, until the server does so."""
    mails = [MAILS[0] + b"the first\r\n", *mails_for(name)]

    def to_both(context, message):
        message.recipients = list(RECIPIENTS)
        server.times = TIMES if server.got and not begun else server.times
        begun.extend([True] if server.got else [])

    begun: list[bool] = []
    plugins = mqcore.Plugins()
    plugins.add("10-to", SimpleNamespace(mq_smtp_in_message=to_both))
    source, failed = ListSource(mails, "a@example.org", None), FailedList(tmp_path)
    async with wrong_server(CASES[name], 0) as server:
        kind = LmtpSink if server.case.lmtp else SmtpSink
        sink = kind(f"//127.0.0.1:{server.port}", source=tmp_path / "mbox")
        with mqcore.Dispatcher(plugins) as dispatcher:
            for _ in range(4):
                report = await Gateway(dispatcher, source, sink, FailedSink(failed, source.url), max_in_flight=1).run()
                if report.error is None:
                    break
        sink.close()
        check(server, mails, report.counts)
    assert report.error is None and failed.mails == [] and begun
    assert report.counts.stored == len(mails)
