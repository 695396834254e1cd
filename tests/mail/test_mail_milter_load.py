"""Many servers that ask at once, and what the milter is told to do meanwhile."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from effort import examples
from milter_tools import Mta
from smtp_tools import Holds, run
from test_mail_milter import MIME, asked
from waiting import until

from mqcore.mail import Mail


@pytest.fixture
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("needs a limit of 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def hold_mails_of(count: int) -> None:
    """Of so many servers at once: none goes on before all are held."""
    holds = Holds("message")
    async with asked(holds) as (mta, at):
        await mta.connect()
        servers = [await Mta.at(at.gateway.source.port) for _ in range(count)]
        assert len(at.server.host.sessions) == count + 1

        async def ask(number: int) -> None:
            one = servers[number]
            await one.connect()
            assert await one.send_mail(MIME, f"{number}@example.org") == "continue"
            assert [said for said in one.said if said[0] != b"p"] == [(b"i", b"\0\0\0\1X-New\0 %d@example.org\0" % number)]

        asking = asyncio.gather(*map(ask, range(count)))
        await until(lambda: len(holds.held) >= count)
        for _, mail in holds.held:
            mail.headers.add("X-New", mail.envelope)
        holds.release()
        await asking
        assert at.counts.continued == count
        for one in servers:
            one.leave()
        await until(lambda: len(at.server.host.sessions) <= 1)


@run
async def test_many_connections() -> None:
    await hold_mails_of(200)


@pytest.mark.slow
@pytest.mark.usefixtures("_many_files")
def test_a_thousand_connections() -> None:
    uvloop.run(hold_mails_of(1000))


@run
async def test_one_connection_too_many_is_closed() -> None:
    async with asked() as (mta, at):
        at.server.host.most = 2
        await mta.connect()
        other = await Mta.at(at.gateway.source.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", at.gateway.source.port)
        assert await reader.read() == b""
        writer.close()
        assert await mta.send_mail(MIME) == "continue"
        other.leave()


@run
async def test_a_server_that_says_nothing_for_hours_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqcore.mail.milter.server.SWEEP", 0.05)
    monkeypatch.setattr("mqcore.mail.milter.server.IDLE", 0.2)
    async with asked() as (mta, _at):
        await mta.connect()
        assert await mta.is_closed()


@run
async def test_plugins_come_and_go_while_servers_ask() -> None:
    """What comes is asked in new sessions, and each mail has been through all plugins that there were, or that there are."""
    chance = random.Random(1)

    def adds(name: str) -> Any:
        async def hook(context: Any, mail: Mail) -> None:
            await asyncio.sleep(chance.random() / 100)
            mail.headers.add("X-New", name)

        return SimpleNamespace(mq_smtp_in_message=hook)

    async with asked(adds("first")) as (_mta, at):
        plugins, going = at.gateway.dispatcher.plugins, True

        async def ask() -> int:
            asked = 0
            while going:
                one = await Mta.at(at.gateway.source.port)
                await one.connect()
                for _ in range(3):
                    assert await one.send_mail(MIME) == "continue"
                    assert [said[0] for said in one.said if said[0] != b"p"] in ([b"i"], [b"i", b"i"])
                    asked += 1
                one.leave()
            return asked

        asking = [asyncio.create_task(ask()) for _ in range(20)]
        for number in range(examples(60)):
            plugins.add(f"90-{number}", adds("second"))
            await asyncio.sleep(0.01)
            plugins.remove(f"90-{number}")
        going = False
        mails = sum(await asyncio.gather(*asking))
        assert at.counts.continued == mails > 0
