"""The rows of the milter protocol that are about a client's session, against a real Sendmail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from milter_partners import asking_sendmail, need_sendmail, send
from smtp_tools import certificate, plugin, run
from waiting import until

from mqcore.mail import Mail

MIME = (
    b"From: a@sender.example\r\nDate: Sun, 29 Nov 2026 08:00:00 +0000\r\nMessage-Id: <1@sender.example>\r\n"
    b"Subject: hello\r\n\r\nbody\r\n"
)


@pytest.fixture(autouse=True)
def _needs_sendmail() -> None:
    need_sendmail()


@run
async def test_refusals_at_each_stage(tmp_path: Path) -> None:
    """Each as the client is told it; Sendmail puts the address in front of it."""
    refused: dict[str, tuple[int, str]] = {}

    def at_stage(stage: str) -> Any:
        def hook(context: Any, message: Mail, *arguments: Any) -> None:
            if stage in refused:
                if refused[stage][0] == 0:
                    raise ValueError("a bug")
                message.reject(*refused[stage])

        return hook

    stages = ("connect", "mailfrom", "rcptto", "data", "message")
    async with asking_sendmail(tmp_path, plugin(**{stage: at_stage(stage) for stage in stages})) as at:
        cases = (
            ((550, "5.1.1 50% of %s %n"), "550 5.1.1 ", "50% of %s %n"),
            ((450, "no"), "450 4.7.1 ", "no"),
            ((554, "4.2.0 another class"), "554 5.2.0 ", "another class"),
            ((0, ""), "451 4.3.0 ", "this server has a problem; try again later"),
        )
        for stage in stages[1:]:
            for rejection, begin, end in cases if stage in ("mailfrom", "message") else cases[::len(cases) - 1]:
                refused[stage] = rejection
                async with at.client() as client:
                    said = await send(client, MIME)
                    assert said.startswith(begin) and said.endswith(end), (stage, said)
                    refused.clear()
                    assert (await send(client, MIME)).startswith("250")
        for rejection, greeting in (((554, "5.7.1 go away"), "554 "), ((421, "later"), "421 "), ((0, ""), "421 ")):
            refused["connect"] = rejection
            client = await at.connect()
            said = await client.reply()
            client.leave()
            assert said.startswith(greeting), said


@run
async def test_tls_is_told_when_it_begins(tmp_path: Path) -> None:
    seen: list[Any] = []

    def note(stage: str) -> Any:
        def hook(context: Any, message: Mail, *arguments: Any) -> None:
            connection = message.connection
            assert connection is not None
            seen.append((stage, connection.tls, connection.helo, "tls_version" in connection.macros))

        return hook

    noted = plugin(**{stage: note(stage) for stage in ("secure", "mailfrom", "message")})
    async with asking_sendmail(tmp_path, noted, certificate=certificate().file) as at, at.client() as client:
        assert (await send(client, MIME)).startswith("250")
        assert (await client.ask(b"STARTTLS\r\n")).startswith("220")
        await client.start_tls(certificate().client)
        assert (await client.ask(b"EHLO again.example\r\n")).startswith("250")
        assert (await send(client, MIME)).startswith("250")
    before, now = (False, "client.example", False), (True, "again.example", True)
    stages = [("mailfrom", *before), ("message", *before), ("secure", *now), ("mailfrom", *now), ("message", *now)]
    assert seen == stages


@run
async def test_what_sendmail_says_beside(tmp_path: Path) -> None:
    seen: list[Any] = []

    def note(context: Any, message: Mail, *arguments: Any) -> None:
        connection = message.connection
        assert connection is not None
        seen.append([message.envelope, message.json.get("mail_parameters"), connection.authenticated, connection.peer])
        seen[-1].append(message.json["queue_id"])

    async with asking_sendmail(tmp_path, plugin(mailfrom=note, message=note)) as at, at.client() as client:
        await send(client, MIME, sender="<a@sender.example> SIZE=100 BODY=8BITMIME")
        await client.ask(b"MAIL FROM:<x@sender.example>\r\n")
        await client.ask(b"RSET\r\n")
        await send(client, MIME, sender="<>")
        await at.until_arrived(2)
    ids = [each.pop() for each in seen]
    first = ["a@sender.example", ["SIZE=100", "BODY=8BITMIME"], False, "127.0.0.1"]
    forgotten, last = (["x@sender.example", None, False, "127.0.0.1"], ["", None, False, "127.0.0.1"])
    assert seen == [first, first, forgotten, last, last]
    assert ids[0] == ids[1] != ids[2] != ids[3] == ids[4]  # Sendmail knows it from MAIL on


RECIPIENTS = [
    "B@Example.ORG",
    '"b b"@example.org',
    "b%c@example.org",
    "@relay.example:b@example.org",
    "b@[192.0.2.1]",
    "c!b@example.org",
    '"b"@example.org',
]


@run
async def test_recipients_with_odd_addresses_can_be_taken_away(tmp_path: Path) -> None:
    """Each as its server knows it."""

    def change(context: Any, mail: Mail) -> None:
        mail.envelope = ""
        if mail.recipient != "stays@example.org":
            mail.recipient = '"new one"@example.org'

    async with asking_sendmail(tmp_path, plugin(message=change)) as at, at.client() as client:
        for recipient in RECIPIENTS:
            reply = await send(client, MIME, recipient, "stays@example.org")
            assert reply.startswith("250"), (recipient, reply)
        await until(lambda: not list((tmp_path / "sendmail" / "queue").rglob("qf*")))
    got = sorted((mail.origin.recipient or "", mail.envelope) for mail in at.arrived.mails)
    assert got == [('"new one"@example.org', "")] * len(RECIPIENTS) + [("stays@example.org", "")] * len(RECIPIENTS)


@run
async def test_a_mail_is_kept_where_a_plugin_says_so(tmp_path: Path) -> None:
    def keep(context: Any, mail: Mail) -> None:
        if b"odd" in mail.mime:
            mail.json["quarantine"] = "100% odd"

    async with asking_sendmail(tmp_path, plugin(message=keep)) as at, at.client() as client:
        assert (await send(client, b"A: odd\r\n" + MIME)).startswith("250")
        assert (await send(client, MIME)).startswith("250")
        await at.until_arrived(1)
        (kept,) = (tmp_path / "sendmail" / "queue").rglob("hf*")
        assert "100% odd" in kept.read_text("latin-1")
    assert len(at.arrived.mails) == 1
