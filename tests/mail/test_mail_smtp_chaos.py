"""Clients that say anything and go away at any time, plugins that do anything, and a stop in the middle: the books add up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from types import SimpleNamespace
from typing import Any

import pytest
from smtp_tools import EHLO, Client, Serving, certificate, run, serving

import mqcore

STAGES = ("connect", "secure", "mailfrom", "rcptto", "data", "message", "close")
SCRIPT = [
    *(EHLO, b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"RCPT TO:<e@f>\r\n", b"DATA\r\n", b"text\r\n.\r\n"),
    *(b"RSET\r\n", b"NOOP\r\n", b"BAD\r\n", b"bare\n.\r\n", b"QUIT\r\n", b"STARTTLS\r\n", b"x" * 20_000 + b"\r\n"),
]
MAIL = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\ntext\r\n.\r\n"


def moody(chance: random.Random) -> SimpleNamespace:
    """A plugin that lets most things pass, and does all else that a plugin can do now and then."""

    def hook(context: Any, message: Any, *arguments: Any) -> Any:
        mood = chance.random()
        if mood < 0.2:
            give_back = chance.choice([context.continue_, context.complete])
            context.start_timer(chance.random() * 0.01, attempt, give_back, message)
            return True
        if mood < 0.25:
            message.reject(chance.choice([421, 450, 550]), "no")
        elif mood < 0.27:
            raise ValueError("in a mood")
        elif mood < 0.29:
            return mqcore.COMPLETE
        elif mood < 0.30:
            return context.hold(message) and True  # which is then forgotten, until the deadline
        return False

    def attempt(give_back: Any, message: Any) -> None:
        with contextlib.suppress(mqcore.NotHeld):  # its client may have gone away
            give_back(message)

    return SimpleNamespace(**{f"mq_smtp_in_{stage}": hook for stage in STAGES})


async def client(it: Serving, chance: random.Random) -> None:
    # uvloop raises RuntimeError where a transport is used that is closed already.
    with contextlib.suppress(OSError, RuntimeError):
        one = await it.connect()
        reading = asyncio.create_task(read(one))
        for _ in range(chance.randrange(30)):
            data = MAIL if chance.random() < 0.4 else chance.choice(SCRIPT)
            if data == SCRIPT[11] and chance.random() < 0.5:
                await start_tls(one, reading)
                reading = asyncio.create_task(read(one))
            cut = chance.randrange(len(data))
            one.send(data[:cut])
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.005)
            one.send(data[cut:])
        if chance.random() < 0.5:
            await asyncio.sleep(chance.random() * 0.05)
        end = chance.random()
        if end < 0.3:
            with contextlib.suppress(NotImplementedError):  # TLS knows no half of a connection
                one.writer.write_eof()
            await asyncio.sleep(chance.random() * 0.05)
        elif end < 0.6:
            one.reset()
        one.leave()
        await asyncio.wait([reading])


async def read(one: Client) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while await one.reader.read(10_000):
            pass


async def start_tls(one: Client, reading: asyncio.Task[None]) -> None:
    reading.cancel()
    await asyncio.wait([reading])
    one.send(b"STARTTLS\r\n")
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(0.2):
            await one.start_tls(certificate().client)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(6))
@run
async def test_chaos(seed, mixed, monkeypatch, caplog):
    monkeypatch.setattr("mqcore.mail._gateway.PATIENCE", 0.2)
    monkeypatch.setattr("mqcore.mail.smtp.server.SWEEP", 0.02)
    caplog.set_level(logging.CRITICAL, "mqcore")
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    chance = random.Random(seed)
    plugins = {"10-moody": moody(chance), "20-moody": moody(chance)}
    options = {"max_in_flight": chance.choice([1, 3, 1000]), "tls": "starttls", "mixed": mixed, "timeout": 0.3}
    async with serving(plugins, **options) as it:
        clients = [asyncio.create_task(client(it, chance)) for _ in range(60)]
        enough = chance.choice([1, 30, 60])
        await it.until(lambda: it.server is not None and it.server.host.entered >= enough)
        if chance.random() < 0.5:
            await asyncio.wait(clients)
        it.gateway.stop()
        await asyncio.gather(*clients)
        await it.until(lambda: not it.server.host.connections)
    assert errors == []
