"""Plugins that leave nonsense behind: their mail's client gets a reply, and the server serves the next one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace

import pytest
from sending_tools import next_server
from smtp_tools import ALL, EHLO, codes, run, serving
from test_mail_smtp_server import THREE

from mqcore.mail.maildir.sink import MaildirSink
from mqcore.mail.mbox.sink import MboxSink
from mqcore.mail.smtp.sink import SmtpSink

NONSENSE = {
    "no dict": lambda message: setattr(message, "json", None),
    "numbers": lambda message: message.json.update(envelope=5, recipient=5, recipients=5),
    "numbers in a list": lambda message: message.json.update(recipients=[5, None]),
    "no text": lambda message: message.json.update(envelope="\ud800", recipient="\ud800"),
    "lines": lambda message: message.json.update(envelope="a\r\nb", recipient="a\r\nb", recipients=["a\r\nb"]),
    "what cannot be copied": lambda message: message.json.update(own=threading.Lock()),
}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("stage", ["in_mailfrom", "in_rcptto", "in_data", "in_message", "out_data"])
@pytest.mark.parametrize("kind", ["maildir", "mbox", "smtp"])
@run
async def test_nonsense(
    tmp_path, kind, stage, nonsense, held
):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    def hook(context, message, *arguments):
        if message.envelope == "a@example.org" and not message.data:
            NONSENSE[nonsense](message)
            if held:
                context.start_timer(0.001, context.continue_, message)
            return held
        return False

    def refuse_two(context, message):
        if str(message.recipient).startswith("two"):
            message.reject(550, "no")

    async with contextlib.AsyncExitStack() as stack:
        if kind == "smtp":
            server = await stack.enter_async_context(next_server())
            sink = SmtpSink(f"//127.0.0.1:{server.port}")
        else:
            sink = {"maildir": MaildirSink, "mbox": MboxSink}[kind](str(tmp_path / "in"))
        stack.callback(sink.close)
        plugins = {
            "05-no": SimpleNamespace(mq_smtp_in_message=refuse_two),
            "10-nonsense": SimpleNamespace(**{f"mq_smtp_{stage}": hook}),
        }
        it = await stack.enter_async_context(serving(plugins, mixed=True, sink=sink))
        client = await it.greeted()
        client.send(THREE + b"QUIT\r\n")
        async with asyncio.timeout(5):
            said = (await client.reader.read()).decode().splitlines()
        assert said[-1].startswith("221 ") and said[-2][:4] in ("250 ", "451 ", "500 ", "550 ", "553 "), said
        client = await it.greeted()
        client.send(ALL.removeprefix(EHLO).replace(b"a@example.org", b"other@example.org"))
        assert codes([await client.reply() for _ in range(4)])[-1] == "250 2.6.0"
    assert errors == []
