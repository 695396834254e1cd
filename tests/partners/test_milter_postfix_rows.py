"""The rows of the milter protocol that are about a client's session, against a real Postfix."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from milter_partners import asking_postfix, need_postfix, send
from smtp_tools import ListSink, certificate, plugin, run
from waiting import until

from mqcore.mail import Mail

MIME = (
    b"From: a@sender.example\r\nDate: Sun, 29 Nov 2026 08:00:00 +0000\r\nMessage-Id: <1@sender.example>\r\n"
    b"Subject: hello\r\n\r\nbody\r\n"
)


@pytest.fixture(autouse=True)
def _needs_postfix() -> None:
    need_postfix()


@run
async def test_refusals_at_each_stage(tmp_path: Path) -> None:
    """Each as the client is told it."""
    refused: dict[str, tuple[int, str]] = {}

    def at_stage(stage: str) -> Any:
        def hook(context: Any, message: Mail, *arguments: Any) -> None:
            if stage in refused:
                if refused[stage][0] == 0:
                    raise ValueError("a bug")
                message.reject(*refused[stage])

        return hook

    stages = ("connect", "mailfrom", "rcptto", "data", "message")
    async with asking_postfix(tmp_path, plugin(**{stage: at_stage(stage) for stage in stages})) as at:
        cases = (
            ((550, "5.1.1 50% of käse %s %n"), "550 5.1.1 50% of käse %s %n"),
            ((450, "no"), "450 4.7.1 no"),
            ((554, "4.2.0 another class"), "554 5.2.0 another class"),
            ((550, "5.7.1"), "550 5.7.1"),
            ((550, ""), "550 5.7.1"),
            ((550, "x" * 3000), "550 5.7.1 " + "x" * 3000),
            ((0, ""), "451 4.3.0 this server has a problem; try again later"),
        )
        for stage in stages[1:]:
            for rejection, said in cases if stage in ("mailfrom", "message") else cases[::len(cases) - 1]:
                refused[stage] = rejection
                async with at.client() as client:
                    assert (await send(client, MIME)).rstrip() == said, (stage, rejection)
                    refused.clear()
                    assert (await send(client, MIME)).startswith("250")
        for rejection, greeting in (((554, "5.7.1 go away"), "554 "), ((421, "later"), "421 "), ((0, ""), "421 ")):
            refused["connect"] = rejection
            client = await at.connect()
            assert (await client.reply()).startswith(greeting)
            if greeting == "554 ":
                assert (await client.ask(b"EHLO client.example\r\n")).startswith("250")
                assert await client.ask(b"MAIL FROM:<a@sender.example>\r\n") == "554 5.7.1 go away"
            client.leave()


@run
async def test_tls_is_told_when_it_begins(tmp_path: Path) -> None:
    """The client says EHLO again within TLS, and so does Postfix."""
    seen: list[Any] = []

    def note(stage: str) -> Any:
        def hook(context: Any, message: Mail, *arguments: Any) -> None:
            connection = message.connection
            assert connection is not None
            seen.append((stage, connection.tls, connection.helo, "tls_version" in connection.macros))

        return hook

    noted = plugin(secure=note("secure"), mailfrom=note("mailfrom"), message=note("message"))
    settings = {"smtpd_tls_chain_files": str(certificate().file), "smtpd_tls_security_level": "may"}
    async with asking_postfix(tmp_path, noted, **settings) as at, at.client() as client:
        assert (await send(client, MIME)).startswith("250")
        assert seen == [("mailfrom", False, "client.example", False), ("message", False, "client.example", False)]
        seen.clear()
        assert (await client.ask(b"STARTTLS\r\n")).startswith("220")
        await client.start_tls(certificate().client)
        assert (await client.ask(b"EHLO again.example\r\n")).startswith("250")
        assert (await send(client, MIME)).startswith("250")
        assert (await client.ask(b"EHLO again.example\r\n")).startswith("250")
        assert (await send(client, MIME)).startswith("250")
        now = (True, "again.example", True)
        assert seen == [("secure", *now), *[("mailfrom", *now), ("message", *now)] * 2]


@run
async def test_what_postfix_says_beside(tmp_path: Path) -> None:
    seen: list[Any] = []
    made: list[Any] = []

    def note(context: Any, message: Mail, *arguments: Any) -> None:
        connection = message.connection
        assert connection is not None
        seen.append((message.envelope, message.json.get("mail_parameters"), connection.authenticated, connection.peer))
        made.append((message.json.get("queue_id"), dict(connection.macros)))

    settings = {"milter_macro_defaults": "auth_authen=bob", "milter_mail_macros": "i, {auth_authen}, {mail_addr}"}
    async with asking_postfix(tmp_path, plugin(mailfrom=note, message=note), **settings) as at, at.client() as client:
        await send(client, MIME, sender="<a@sender.example> SIZE=100 BODY=8BITMIME")
        await send(client, MIME, sender="<>")
        await send(client, MIME, sender='<"a b"@sender.example> SIZE=10')
        await at.until_arrived(3)
        await until(lambda: at.server.log.count(": removed") == 3)  # what it says last of a mail
        log = at.server.log
    assert [one[:2] for one in seen[::2]] == [one[:2] for one in seen[1::2]] == [
        ("a@sender.example", ["SIZE=100", "BODY=8BITMIME"]),
        ("", None),
        ('"a b"@sender.example', ["SIZE=10"]),
    ]
    assert {one[2:] for one in seen} == {(True, "127.0.0.1")}
    for (before, _), (id, macros) in zip(made[::2], made[1::2], strict=True):
        assert before is None  # Postfix knows it from DATA on
        assert f" {id}: removed" in log
        assert macros["j"] == "postfix.example" and macros["v"].startswith("Postfix ") and macros["i"] == id


@run
async def test_a_mail_is_kept_where_a_plugin_says_so(tmp_path: Path) -> None:
    def keep(context: Any, mail: Mail) -> None:
        if b"odd" in mail.mime:
            mail.json["quarantine"] = "100% odd"

    async with asking_postfix(tmp_path, plugin(message=keep)) as at, at.client() as client:
        assert (await send(client, b"A: odd\r\n" + MIME)).startswith("250")
        assert (await send(client, MIME)).startswith("250")
        await at.until_arrived(1)
        assert len(list((tmp_path / "postfix" / "spool" / "hold").iterdir())) == 1
        assert "milter triggers HOLD action" in at.server.log
    assert len(at.arrived.mails) == 1


@run
async def test_with_a_sink_postfix_keeps_nothing(tmp_path: Path) -> None:
    taken = ListSink()
    async with asking_postfix(tmp_path, sink=taken) as at, at.client() as client:
        assert (await send(client, MIME, "b@example.org", "c@example.org")).startswith("250")
        await asyncio.to_thread(at.server.wait_for, "milter-discard")
    assert [(mail.recipient, mail.mime) for mail in taken.mails] == [("b@example.org", MIME), ("c@example.org", MIME)]
    assert at.arrived.mails == []


@run
async def test_by_a_unix_socket(tmp_path: Path) -> None:
    """Postfix's smtpd is no root: it is of the group of the folder here."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.chown(folder, "root", "postfix")
    folder.chmod(0o2750)
    seen: list[bytes] = []
    where = f"unix:{folder}/milter"
    async with asking_postfix(
        tmp_path, plugin(message=lambda context, mail: seen.append(mail.mime)), where=where
    ) as at, at.client() as client:
        assert (await send(client, MIME)).startswith("250")
    assert seen == [MIME]
    assert not (folder / "milter").exists()


RECIPIENTS = [
    "B@Example.ORG",
    '"b b"@example.org',
    '"b@c"@example.org',
    "b%c@example.org",
    "b..b@example.org",
    "b@[192.0.2.1]",
    "@relay.example:b@example.org",
    "@relay.example,@other.example:b@example.org",
    "b@example.org.",
    "\xe9@example.org",
    "b",
    "b|c@example.org",
    '"b"@example.org',
    r"b\@c@example.org",
    "c!b@example.org",
]


@run
async def test_recipients_with_odd_addresses_can_be_taken_away(tmp_path: Path) -> None:
    """Each as its server knows it."""

    def change(context: Any, mail: Mail) -> None:
        if mail.recipient != "stays@example.org":
            mail.recipient = '"new one"@example.org'

    async with asking_postfix(tmp_path, plugin(message=change), smtputf8_enable="no") as at, at.client() as client:
        for recipient in RECIPIENTS:
            reply = await send(client, MIME, recipient, "stays@example.org")
            assert reply.startswith("250"), (recipient, reply)
        await asyncio.to_thread(at.server.wait_for, ": removed", len(RECIPIENTS))
    got = sorted(mail.origin.recipient or "" for mail in at.arrived.mails)
    assert got == ['"new one"@example.org'] * len(RECIPIENTS) + ["stays@example.org"] * len(RECIPIENTS)


NEW = {"b": "c", "d": "e", "e": "d"}


@run
async def test_recipients_that_become_the_same_or_each_other(tmp_path: Path) -> None:
    def change(context: Any, mail: Mail) -> None:
        name = (mail.recipient or "").partition("@")[0]
        mail.recipient = f"{NEW.get(name, name)}@example.org"

    async with asking_postfix(tmp_path, plugin(message=change)) as at, at.client() as client:
        for names in ("bc", "de", "ccf"):
            assert (await send(client, MIME, *(f"{name}@example.org" for name in names))).startswith("250")
        await asyncio.to_thread(at.server.wait_for, ": removed", 3)
    assert sorted((mail.origin.recipient or "")[0] for mail in at.arrived.mails) == ["c", "c", "d", "e", "f"]


@run
async def test_what_the_client_gives_up_is_forgotten(tmp_path: Path) -> None:
    seen: list[Any] = []

    def note(stage: str) -> Any:
        return lambda context, message, *arguments: seen.append((stage, message.envelope))

    stages = ("mailfrom", "message", "close")
    async with asking_postfix(tmp_path, plugin(**{stage: note(stage) for stage in stages})) as at:
        async with at.client() as client:
            assert (await client.ask(b"MAIL FROM:<x@sender.example>\r\n")).startswith("250")
            assert (await client.ask(b"RSET\r\n")).startswith("250")
            assert (await send(client, MIME)).startswith("250")
            assert (await client.ask(b"MAIL FROM:<y@sender.example>\r\n")).startswith("250")
            assert (await client.ask(b"RCPT TO:<b@example.org>\r\n")).startswith("250")
            assert (await client.ask(b"DATA\r\n")).startswith("354")
            client.send(b"A: b\r\n")
        await until(lambda: seen[-1][0] == "close")
        assert [one for one, _ in seen] == ["mailfrom", "mailfrom", "message", "mailfrom", "close"]
