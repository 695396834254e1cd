"""What goes wrong while mails are on their short way to the next server: each gets one verdict, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from sending_tools import deliver, delivering, next_server
from smtp_tools import run
from test_mail_smtp_soon import new_client, the_long_way, the_short_way

import mqcore
from mqcore.mail import Mail, record
from mqcore.mail.record import Record
from mqcore.mail.smtp import _soon
from mqcore.mail.smtp.pool import MAX_CONNECTIONS

MAILS = [b"Subject: %d\n\nhello\n" % number for number in range(6)]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.sender.PAUSES", (0.01,) * 5)


@pytest.mark.parametrize("replies", [b"250 %b\r\n250 ok\r\n354 go\r\n", b"250 ok\r\n250 ok\r\n354 %b\r\n"])
@run
async def test_a_line_that_is_too_long_for_the_other_way(replies):
    """It would have to hear it too, when the message is refused."""
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        pieces = [replies % (b"x" * 70_000), b"550 5.7.1 no\r\n"]
        mails = [Mail(MAILS[0], envelope="a@example.org", recipients=["b@example.org"]) for _ in range(2)]
        long = await the_long_way(new_client(False, 0), mails[0], pieces)
        assert await the_short_way(new_client(False, 0), mails[1], pieces, dispatcher) == long


@pytest.mark.parametrize("in_flight", [1, 6])
@run
async def test_a_mail_that_cannot_be_made_ready(in_flight, tmp_path, monkeypatch):
    """The one that another one's end begins is no fault of that one."""

    def make_content(mime):
        if b"Subject: 3" in mime:
            raise MemoryError
        return make(mime)

    make = _soon.make_content
    monkeypatch.setattr("mqcore.mail.smtp._soon.make_content", make_content)
    monkeypatch.setattr("mqcore.mail.smtp.pool.MAX_CONNECTIONS", 1)
    async with next_server() as server:
        server.extensions.append("PIPELINING")
        report, _ = await deliver(server, tmp_path, MAILS, max_in_flight=in_flight)
        assert len(server.mails) == report.counts.stored == len(MAILS)  # the longer way had the memory


@pytest.mark.parametrize("end", ["250 ok", "550 5.7.1 no", "451 4.3.0 later"])
@pytest.mark.parametrize("change", ["recipients", "nobody", "envelope", "reject", "json"])
@run
async def test_a_plugin_changes_a_mail_that_is_on_its_way(change, end, tmp_path):
    class Odd(dict):
        def __setitem__(self, key, value):
            raise ValueError(key)

    def keep(context, message):
        kept.append(message)

    def changed():
        mail = kept[1]
        if change == "recipients":
            mail.recipients = ["else@example.org", "other@example.org"]
        elif change == "nobody":
            mail.recipients = []
        elif change == "envelope":
            mail.envelope = None
        elif change == "json":
            mail.json = Odd(mail.json)
        else:
            mail.reject(550, "no, after all")

    kept = []
    plugins = {"10-keep": SimpleNamespace(mq_smtp_in_message=keep)}
    answers = {"data": ["354 go", "silence"], "message": ["250 ok", end]}
    async with next_server(answers) as server, delivering(server, tmp_path, MAILS, plugins, max_in_flight=1) as it:
        server.extensions.append("PIPELINING")
        await server.silent.wait()
        changed()
        server.speak.set()
        report = await it.end()
        assert all(room._value == MAX_CONNECTIONS + more for more, room in enumerate(it.gateway.sink._sender.pool._rooms))
    counts = report.counts
    assert report.error is None and counts.stored + counts.rejected + counts.failed == len(MAILS), counts


@pytest.mark.parametrize("stage", ["mailfrom", "data", "message"])
@run
async def test_a_run_that_is_broken_off_closes_all_connections(stage, tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.1)
    answers = {stage: ["354 ok" if stage == "data" else "250 ok", "silence"]}
    async with next_server(answers) as server, delivering(server, tmp_path, MAILS, max_in_flight=1) as it:
        server.extensions.append("PIPELINING")
        await server.silent.wait()
        it.gateway.stop()
        await it.end()  # which sees to it that none is left
        server.speak.set()
        await it.until(lambda: not server.open)


@run
async def test_a_run_that_is_broken_off_closes_no_record_that_is_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.1)
    going, go, fsync, closed = threading.Event(), threading.Event(), record.os.fsync, []

    def slow(fd):
        if server.mails[1:] and not going.is_set():
            going.set()
            assert go.wait(30)
            closed.append(it.gateway.sink.record._fd < 0)
        fsync(fd)

    monkeypatch.setattr(record.os, "fsync", slow)
    async with next_server() as server, delivering(server, tmp_path, MAILS, max_in_flight=1) as it:
        server.extensions.append("PIPELINING")
        await it.until(going.is_set)
        it.gateway.stop()
        await it.until(lambda: not it.gateway.in_flight)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not it.running.done()
        go.set()
        await it.end()
    assert closed == [False]


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_loop_that_ends_while_a_record_is_written(turns, tmp_path, monkeypatch):
    """As `asyncio.run` does it, which cancels all tasks, and waits for them."""
    fsync = record.os.fsync

    def slow(fd):
        cancelled.wait(0.2)
        fsync(fd)

    async def main():
        noting = [asyncio.create_task(it.note([f"{number:032x}"], {})) for number in range(3)]
        asyncio.get_running_loop().call_soon(cancelled.set)
        for _ in range(turns):
            await asyncio.sleep(0)
        noting.append(asyncio.create_task(it.note([f"{3:032x}"], {})))
        if turns:
            await asyncio.sleep(0)

    cancelled = threading.Event()
    it = Record(tmp_path / "mbox", "smtp://next")
    monkeypatch.setattr(record.os, "fsync", slow)
    asyncio.run(main())
    it.close()
    assert it.path.read_text().count("\n") == 4


@run
async def test_a_recipient_that_is_no_utf8_is_noted(tmp_path):
    it = Record(tmp_path / "mbox", "smtp://next")
    await it.note([], {"0" * 32: ["\udce4@example.org"]})
    await it.written()
    it.close()
    it = Record(tmp_path / "mbox", "smtp://next")
    assert it.recipients_of("0" * 32) == {"\udce4@example.org"}
    it.close()
