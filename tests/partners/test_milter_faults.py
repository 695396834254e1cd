"""A real Postfix and its milter when things go wrong: either is killed, plugins are replaced, or hold a mail for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import smtplib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cli_tools import Server, serve
from free_ports import free_port
from mail_tools import read_maildir, write_plugin
from mail_tools import run as run_command
from milter_partners import asking_postfix, need_postfix, send
from partner_servers import Postfix
from smtp_tools import Holds, plugin, run
from waiting import until

from mqcore.mail import Mail

MIME = (
    b"From: a@sender.example\r\nDate: Sun, 29 Nov 2026 08:00:00 +0000\r\nMessage-Id: <1@sender.example>\r\n"
    b"Subject: hello\r\n\r\nbody\r\n"
)
STAGES = ("connect", "mailfrom", "rcptto", "data", "message")


@pytest.fixture(autouse=True)
def _needs_postfix() -> None:
    need_postfix()


@pytest.mark.parametrize("stage", ["mailfrom", "message"])
@run
async def test_what_plugins_hold_is_taken_back_when_postfix_is_killed(tmp_path: Path, stage: str) -> None:
    holds = Holds(stage)
    async with asking_postfix(tmp_path, holds) as at:
        async with at.client() as client:
            sending = asyncio.create_task(send(client, MIME))
            await until(lambda: holds.held)
            for pid in [*pids("smtpd", tmp_path / "postfix"), *pids("cleanup", tmp_path / "postfix")]:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not at.gateway.source._server.host.sessions)
            assert at.gateway.dispatcher.counts()["held"] == 0
            assert holds.closed >= 1
            with contextlib.suppress(AssertionError):  # its connection is gone
                await sending
        holds.held.clear()


def pids(program: str, home: Path) -> list[int]:
    """Of this Postfix."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            is_it = Path("/proc", name, "comm").read_text().strip() == program
            if is_it and os.readlink(f"/proc/{name}/cwd") == f"{home}/spool":
                found.append(int(name))
    return found


@contextlib.contextmanager
def milter(folder: Path, port: int, *arguments: object) -> Iterator[Server]:
    with serve("--plugins", folder / "plugins", *arguments, source=f"milter://127.0.0.1:{port}") as server:
        yield server


def ask(port: int) -> tuple[int, bytes]:
    """What a client is told at last."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60, local_hostname="client.example") as client:
        try:
            client.sendmail("a@sender.example", ["b@example.org"], MIME)
        except smtplib.SMTPResponseException as error:
            return error.smtp_code, error.smtp_error
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients["b@example.org"]
    return 250, b""


def test_a_milter_that_is_killed_lets_nothing_by(tmp_path: Path) -> None:
    """While it holds the mail, and while it is away; when it is there again, all goes on."""
    plugins, port = tmp_path / "plugins", free_port()
    write_plugin(
        plugins,
        "10-hold",
        """
        import mqcore

        def mq_smtp_in_message(context, message):
            context.log.error("held")
            return mqcore.HOLD
        """,
    )
    asks = f"{{ inet:127.0.0.1:{port}, default_action=tempfail }}"
    with Postfix(tmp_path / "postfix", smtpd_milters=asks, default_transport="discard:") as postfix:
        with contextlib.suppress(AssertionError), milter(tmp_path, port) as server:
            client = smtplib.SMTP("127.0.0.1", postfix.port, timeout=60, local_hostname="client.example")
            client.ehlo()
            client.mail("a@sender.example")
            client.rcpt("b@example.org")
            client.putcmd("DATA")
            assert client.getreply()[0] == 354
            client.send(MIME + b".\r\n")
            while "held" not in server.process.stderr.readline():
                pass
            server.process.kill()
            assert client.getreply()[0] == 451
            client.close()
            server.process.wait()
        assert ask(postfix.port)[0] == 451
        write_plugin(plugins, "10-hold", "def mq_smtp_in_message(context, message): return False")
        with milter(tmp_path, port):
            assert ask(postfix.port)[0] == 250
        assert "removed" in postfix.log
        postfix.wait_until_sent(1)
        assert len(re.findall("status=sent", postfix.log)) == 1


@pytest.mark.slow
def test_plugins_are_replaced_while_mail_comes_in(tmp_path: Path) -> None:
    """Each mail has been through the plugins as they were before, or as they are now."""
    plugins, port = tmp_path / "plugins", free_port()
    control, arrived = tmp_path / "control", tmp_path / "arrived"
    text = """
        async def mq_smtp_in_message(context, message):
            import asyncio
            await asyncio.sleep(0.02)
            message.headers.add("X-Version", "{}")
    """
    write_plugin(plugins, "10-version", text.format(0))
    asks = f"{{ inet:127.0.0.1:{port}, default_action=tempfail }}"
    with (
        serve("--to", f"maildir:{arrived}") as mailboxes,
        milter(tmp_path, port, f"--control={control}"),
        Postfix(tmp_path / "postfix", smtpd_milters=asks, relayhost=f"[127.0.0.1]:{mailboxes.port}") as postfix,
        ThreadPoolExecutor(4) as threads,
    ):
        mails = [threads.submit(ask, postfix.port) for _ in range(60)]
        for version in range(1, 4):
            write_plugin(plugins, "10-version", text.format(version))
            assert run_command("ctl", "--socket", control, "reload").returncode == 0
        mails += [threads.submit(ask, postfix.port) for _ in range(8)]
        assert {mail.result()[0] for mail in mails} == {250}
        postfix.wait_until_sent(len(mails))
        versions = [re.findall(rb"X-Version: (\d)", mail) for mail in read_maildir(arrived)]
    assert len(versions) == 68 and all(len(each) == 1 for each in versions)
    assert [b"3"] in versions and len({each[0] for each in versions}) > 1


async def hold_at_each_stage(folder: Path, seconds: float, **settings: str) -> None:
    """A client for each stage: the first to connect, and the others by their senders."""
    connected: list[Any] = []

    def holding(stage: str) -> Any:
        async def hook(context: Any, message: Mail, *arguments: Any) -> None:
            if stage == "connect":
                connected.append(message.connection)
            if connected[0] is message.connection if stage == "connect" else message.envelope == f"{stage}@sender.example":
                await asyncio.sleep(seconds)

        return hook

    slow = plugin(**{stage: holding(stage) for stage in STAGES})
    async with asking_postfix(folder, slow, hold_timeout=seconds + 60, **settings) as at:

        async def ask(stage: str) -> str:
            async with at.client() as client:
                return await send(client, MIME, sender=f"<{stage}@sender.example>")

        began = time.monotonic()
        replies = await asyncio.gather(*(ask(stage) for stage in STAGES))
        assert all(reply.startswith("250") for reply in replies), replies
        assert time.monotonic() - began >= seconds


@run
async def test_held_at_each_stage_beyond_the_limits_of_postfix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqcore.mail.milter.timeouts.PROGRESS", 0.4)
    limits = ("milter_connect_timeout", "milter_command_timeout", "milter_content_timeout")
    await hold_at_each_stage(tmp_path, 1.5, **dict.fromkeys(limits, "1s"))


@pytest.mark.slow
def test_held_for_minutes(tmp_path: Path) -> None:
    """Postfix waits 30 s for each word of a milter."""
    uvloop.run(hold_at_each_stage(tmp_path, 150))
