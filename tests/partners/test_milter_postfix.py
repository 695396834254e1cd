"""A real Postfix that asks by the milter protocol: plugins see what was sent, and what they made of it is delivered."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import uvloop
from effort import examples
from milter_partners import asking_postfix, delivered, need_postfix, send
from milter_tools import judge
from smtp_tools import plugin, run

from mqcore.mail import Mail
from mqcore.milter.edits import join, split
from mqcore.milter.events import Field


@pytest.fixture(autouse=True)
def _needs_postfix() -> None:
    need_postfix()


NAMES = [b"Subject", b"X-A", b"x-a", b"To", b"Received", b"DKIM-Signature", b"Keywords", b"Comments"]
VALUES = [
    b" a",
    b" a\n\tb",
    b"",
    b" ",
    b"no blank",
    b"  two",
    b" k\xc3\xa4se",
    b" \xe4\xff",
    b" a\n b\n\tc",
    b"\ttab",
    b" %s%%n",
    b" " + b"y" * 900,
    b" =?utf-8?q?x?=",
    b" trailing ",
    b" " + b"\n\t".join([b"w" * 70] * 400),
]
REQUIRED = [
    (b"From", b" a@sender.example"),
    (b"Date", b" Sun, 29 Nov 2026 08:00:00 +0000"),
    (b"Message-Id", b" <1@sender.example>"),
]
"""Without these Postfix would add them."""
BODIES = [b"", b"\r\n", b"body\r\n", b".\r\n..\r\n", b"k\xe4se\r\n" * 5, b"x" * 990 + b"\r\n", b"line\r\n" * 20_000]


def make_fields(chance: random.Random) -> list[Field]:
    fields = [(chance.choice(NAMES), chance.choice(VALUES)) for _ in range(chance.randrange(12))]
    for one in REQUIRED:
        fields.insert(chance.randrange(len(fields) + 1), one)
    return fields


def edit(chance: random.Random, fields: list[Field], body: bytes) -> tuple[list[Field], bytes]:
    fields = list(fields)
    for _ in range(chance.randrange(5)):
        place = chance.randrange(len(fields) + 1)
        match chance.randrange(4):
            case 0:
                fields.insert(place, (chance.choice(NAMES), chance.choice(VALUES)))
            case 1 if place < len(fields) and fields[place] not in REQUIRED:
                del fields[place]
            case 2 if place < len(fields) and fields[place] not in REQUIRED:
                fields[place] = fields[place][0], chance.choice(VALUES)
            case 3:
                fields.insert(place, fields.pop(chance.randrange(len(fields))))
    return fields, chance.choice([body, body, *BODIES])


async def edit_mails(folder: Path, count: int, clients: int, seed: int) -> None:
    seen: list[bytes] = []
    made: list[bytes] = []
    chance = random.Random(seed)

    def change(context: Any, mail: Mail) -> None:
        seen.append(mail.mime)
        mail.mime = join(*edit(chance, *split(mail.mime)))
        made.append(mail.mime)

    sent = [join(make_fields(chance), chance.choice(BODIES)) for _ in range(count)]
    async with asking_postfix(folder, plugin(message=change)) as at:

        async def send_some(mails: list[bytes]) -> None:
            async with at.client() as client:
                for mime in mails:
                    assert (await send(client, mime)).startswith("250"), mime

        await asyncio.gather(*(send_some(sent[number::clients]) for number in range(clients)))
        await at.until_arrived(count)
    assert sorted(seen) == sorted(sent)
    assert sorted(map(delivered, at.arrived.mails)) == sorted(made)


@run
async def test_plugins_see_what_was_sent_and_what_they_made_is_delivered(tmp_path: Path) -> None:
    await edit_mails(tmp_path, examples(150), 2, 1)


@pytest.mark.slow
def test_thousands_of_mails(tmp_path: Path) -> None:
    uvloop.run(edit_mails(tmp_path, 3000, 4, random.randrange(1 << 32)))


@run
async def test_verdicts_reach_the_client(tmp_path: Path) -> None:
    async with asking_postfix(tmp_path, judge(), failed=True) as at, at.client() as client:
        assert await send(client, b"A: b\r\n\r\n", "nobody@example.org") == "550 5.1.1 100% no such user"
        assert (await send(client, b"A: fail\r\n\r\n")).startswith("451 4.3.0 ")
        assert await send(client, b"A: later\r\n\r\n") == "450 4.7.1 later"
        assert (await send(client, b"A: drop\r\n\r\n")).startswith("250")
        assert (await send(client, b"A: b\r\n\r\n", "choosy@example.org")).startswith("554 5.7.1")
        mixed = await send(
            client, b"A: b\r\n\r\n", "nobody@example.org", "choosy@example.org", "b@example.org", "c@example.org"
        )
        assert mixed.startswith("250")
        await at.until_arrived(2)
        await asyncio.to_thread(at.server.wait_for, ": removed", 1)
    assert sorted(mail.origin.recipient or "" for mail in at.arrived.mails) == ["b@example.org", "c@example.org"]


@run
async def test_the_envelope_can_be_another(tmp_path: Path) -> None:
    def change(context: Any, mail: Mail) -> None:
        mail.envelope = ""
        mail.recipients = ["x@example.org", "y@example.org"]

    async with asking_postfix(tmp_path, plugin(message=change)) as at, at.client() as client:
        assert (await send(client, b"A: b\r\n\r\n")).startswith("250")
        await at.until_arrived(2)
    assert sorted((mail.envelope, mail.origin.recipient) for mail in at.arrived.mails) == [
        ("", "x@example.org"),
        ("", "y@example.org"),
    ]


@run
async def test_postfix_waits_as_long_as_it_hears_of_us(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mqcore.mail.milter.timeouts.PROGRESS", 0.4)

    async def wait(context: Any, message: Mail, *arguments: Any) -> None:
        await asyncio.sleep(2.5)

    slow = plugin(mailfrom=wait, message=wait)
    limits = {"milter_command_timeout": "1s", "milter_content_timeout": "1s"}
    async with asking_postfix(tmp_path, slow, **limits) as at, at.client() as client:
        assert (await send(client, b"A: b\r\n\r\n")).startswith("250")


@run
async def test_a_filter_that_is_away_lets_nothing_by(tmp_path: Path) -> None:
    async with asking_postfix(tmp_path, plugin(message=lambda context, mail: None)) as at:
        at.gateway.stop()
        await asyncio.sleep(0)
        client = await at.connect()
        await client.reply()
        await client.ask(b"EHLO client.example\r\n")
        assert (await client.ask(b"MAIL FROM:<a@sender.example>\r\n")).startswith("451")
        client.leave()
