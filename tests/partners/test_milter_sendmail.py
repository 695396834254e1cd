"""A real Sendmail that asks by the milter protocol. It rewrites addresses in the header itself, and counts fields that nobody
sees; so what is delivered has the same content, with new fields on top."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import uvloop
from effort import examples
from milter_partners import asking_sendmail, need_sendmail, send
from milter_tools import judge
from smtp_tools import plugin, run

from mqcore.mail import Mail
from mqcore.milter.edits import join, split
from mqcore.milter.events import Field

OWN = (b"received", b"from", b"date", b"message-id")
"""What Sendmail adds or writes anew."""
NAMES = [b"Subject", b"X-A", b"x-a", b"DKIM-Signature", b"Keywords", b"Comments"]
VALUES = [b" a", b" a\n\tb", b"no blank", b"  two", b" k\xc3\xa4se", b"\ttab", b" %s%%n", b" " + b"y" * 500, b" =?utf-8?q?x?="]
BODIES = [b"body\r\n", b".\r\n..\r\n", b"line\r\n" * 5000]


@pytest.fixture(autouse=True)
def _needs_sendmail() -> None:
    need_sendmail()


def content(mime: bytes) -> tuple[list[Field], bytes]:
    fields, body = split(mime)
    return sorted((name, value.strip()) for name, value in fields if name.lower() not in OWN), body


async def edit_mails(folder: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    made: list[bytes] = []

    def change(context: Any, mail: Mail) -> None:
        fields, body = split(mail.mime)
        for _ in range(chance.randrange(4)):
            place = chance.randrange(len(fields) + 1)
            match chance.randrange(3):
                case 0:
                    fields.insert(place, (chance.choice(NAMES), chance.choice(VALUES)))
                case 1 if place < len(fields):
                    del fields[place]
                case 2 if place < len(fields):
                    fields[place] = fields[place][0], chance.choice(VALUES)
        mail.mime = join(fields, chance.choice([body, body, *BODIES]))
        made.append(mail.mime)

    async with asking_sendmail(folder, plugin(message=change)) as at, at.client() as client:
        for _ in range(count):
            fields = [(chance.choice(NAMES), chance.choice(VALUES)) for _ in range(1 + chance.randrange(8))]
            assert (await send(client, join(fields, chance.choice(BODIES)))).startswith("250")
        await at.until_arrived(count)
    assert sorted(content(mail.origin.mime) for mail in at.arrived.mails) == sorted(map(content, made))


@run
async def test_what_plugins_made_is_delivered(tmp_path: Path) -> None:
    await edit_mails(tmp_path, examples(60), 1)


@pytest.mark.slow
def test_a_thousand_mails(tmp_path: Path) -> None:
    uvloop.run(edit_mails(tmp_path, 1000, random.randrange(1 << 32)))


@run
async def test_verdicts_reach_the_client(tmp_path: Path) -> None:
    async with asking_sendmail(tmp_path, judge(), failed=True) as at, at.client() as client:
        reply = await send(client, b"A: b\r\n\r\n", "nobody@example.org")
        assert reply == "550 5.1.1 <nobody@example.org>... 100% no such user"
        assert (await send(client, b"A: fail\r\n\r\n")).startswith("451 4.3.0 ")
        assert (await send(client, b"A: later\r\n\r\n")).startswith("450 4.7.1 ")
        assert (await send(client, b"A: drop\r\n\r\n")).startswith("250")
        assert (await send(client, b"A: b\r\n\r\n", "choosy@example.org")).startswith("554 5.7.1")
        assert (await send(client, b"A: b\r\n\r\n", "nobody@example.org", "choosy@example.org", "b@example.org")).startswith(
            "250"
        )
        await at.until_arrived(1)
    assert [mail.origin.recipient for mail in at.arrived.mails] == ["b@example.org"]


@run
async def test_sendmail_waits_when_all_of_the_mail_has_come(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mqcore.mail.milter.timeouts.PROGRESS", 0.3)

    async def wait(context: Any, message: Mail, *arguments: Any) -> None:
        await asyncio.sleep(1.5)

    async with asking_sendmail(tmp_path, plugin(mailfrom=wait, message=wait)) as at, at.client() as client:
        assert (await send(client, b"A: b\r\n\r\n")).startswith("250")
