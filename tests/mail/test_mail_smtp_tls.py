"""TLS and AUTH at the SMTP server, with a real certificate and real handshakes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import resource
import socket
import ssl
from typing import Any

import pytest
import trustme
from mail_tools import untraced
from smtp_tools import ALL, EHLO, MAIL, OPEN, TEXT, Holds, certificate, codes, plugin, run, serving

from mqcore.mail import SourceError
from mqcore.mail.smtp.source import SmtpSource, SmtpsSource

PLAIN = b"AUTH PLAIN " + base64.b64encode(b"\0alice\0secret") + b"\r\n"
TLS = {"ssl": certificate().client, "server_hostname": "localhost"}


def accounts(**passwords: str) -> Any:
    """A plugin that knows these."""

    def authenticate(context, message, login, password):
        message.connection.authenticated = passwords.get(login) == password

    return plugin(authenticate=authenticate)


@run
async def test_starttls():
    seen = []

    def secure(context, message):
        seen.append((message.connection.tls, message.connection.helo))

    def mailfrom(context, message, address):
        seen.append((message.connection.tls, message.connection.helo))

    async with serving({"10-note": plugin(secure=secure, mailfrom=mailfrom)}, tls="starttls") as it:
        client = await it.connect()
        await client.reply()
        assert "250-STARTTLS" in await client.ask(b"EHLO before.example\r\n")
        assert await client.ask(b"STARTTLS\r\n") == "220 2.0.0 go ahead"
        await client.start_tls(certificate().client)
        assert codes([await client.ask(MAIL)]) == ["503 5.5.1"]
        assert "STARTTLS" not in await client.ask(EHLO)
        assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
        assert untraced(mail.mime for mail in it.sink.mails) == [TEXT]
        assert await client.ask(b"QUIT\r\n") == "221 2.0.0 bye"
        assert await client.is_closed()
    assert seen == [(True, None), (True, "client.example")]


@run
async def test_implicit_tls():
    seen = []
    stages = ("connect", "secure")
    note = {stage: lambda context, message, stage=stage: seen.append((stage, message.connection.tls)) for stage in stages}
    async with serving({"10-note": plugin(**note)}, tls="implicit") as it:
        client = await it.greeted(**TLS)
        assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
    assert seen == [("connect", True), ("secure", True)]


@run
async def test_what_is_sent_behind_starttls_in_the_clear_is_never_obeyed():
    seen = []
    async with serving({"10-note": plugin(mailfrom=lambda *arguments: seen.append(arguments))}, tls="starttls") as it:
        client = await it.greeted()
        assert codes([await client.ask(b"STARTTLS\r\n" + MAIL)]) == ["554 5.5.1"]
        assert await client.is_closed()
        # In a packet of its own, it is taken for a handshake, which then fails.
        client = await it.greeted()
        await client.ask(b"STARTTLS\r\n")
        client.send(EHLO + MAIL + b"NOOP\r\n" * 10)
        assert await client.is_closed()
    assert seen == []


@run
async def test_what_a_client_sends_right_after_the_handshake_is_not_lost():
    """In TLS 1.3 it may come in the same packet as the end of the handshake."""
    holds = Holds("secure")
    async with serving({"10-hold": holds}, tls="starttls") as it:
        client = await it.greeted()
        await client.ask(b"STARTTLS\r\n")
        await client.start_tls(certificate().client)
        client.send(ALL)
        await it.until(lambda: holds.held)
        await asyncio.sleep(0.02)
        holds.release()
        assert codes([(await client.reply()), *[await client.reply() for _ in range(4)]])[-1] == "250 2.6.0"


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("code", [554, 421])
@run
async def test_a_rejection_when_tls_has_begun(tls, code):
    def secure(context, message):
        message.reject(code, "not with me")

    async with serving({"10-no": plugin(secure=secure)}, tls=tls) as it:
        if tls == "starttls":
            client = await it.greeted()
            await client.ask(b"STARTTLS\r\n")
            await client.start_tls(certificate().client)
            client.send(EHLO)
        else:
            client = await it.connect(**TLS)
        assert await client.reply() == f"{code} {code // 100}.7.1 not with me"
        if code == 421:
            assert await client.is_closed()
        else:
            assert codes([await client.ask(MAIL)]) == ["554 5.7.1"]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("end", ["nonsense", "leaves", "ends", "distrusts"])
@run
async def test_a_handshake_that_fails(tls, end):
    holds = Holds("authenticate")
    async with serving({"10-close": holds}, tls=tls) as it:
        client = await it.connect() if tls == "implicit" else await it.greeted()
        if tls == "starttls":
            await client.ask(b"STARTTLS\r\n")
        if end == "nonsense":
            client.send(b"x" * 1000)
            assert await client.is_closed()
        elif end == "leaves":
            client.leave()
        elif end == "ends":
            client.writer.close()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.start_tls(ssl.create_default_context())
        await it.until(lambda: not it.server.host.connections)
        assert holds.closed == (tls == "starttls")  # with implicit TLS, no plugin knew of it


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@run
async def test_stopping_in_the_middle_of_a_handshake(tls):
    """It is not waited for."""
    async with serving(tls=tls) as it:
        client = await it.connect() if tls == "implicit" else await it.greeted()
        if tls == "starttls":
            await client.ask(b"STARTTLS\r\n")
        it.gateway.stop()
        assert await client.is_closed()


@run
async def test_a_client_that_does_not_shake_hands_counts_as_a_connection(monkeypatch):
    """Else a few of them could take all the files that the server may open, also those that mails are stored in."""
    monkeypatch.setattr("mqcore.mail.smtp.server.MAX_CONNECTIONS", 3)
    async with serving(tls="implicit") as it:
        talking = await it.greeted(**TLS)
        silent = [await it.connect() for _ in range(2)]
        assert await (await it.connect()).is_closed()
        with pytest.raises(ConnectionError):
            await it.connect(**TLS)
        silent[0].leave()
        while True:
            with contextlib.suppress(ConnectionError):
                await it.greeted(**TLS)
                break
        assert (await talking.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"


@run
async def test_a_client_that_never_shakes_hands(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.HANDSHAKE_TIMEOUT", 0.05)
    async with serving(tls="implicit") as it:
        assert await (await it.connect()).is_closed()


@run
async def test_no_memory_for_a_handshake(monkeypatch):
    """The client waited for ever, and its socket was never closed."""

    class Short:
        def __getattr__(self, name):
            return getattr(loop, name)

        async def connect_accepted_socket(self, *arguments, **options):
            raise MemoryError

    loop = asyncio.get_running_loop()
    async with serving(tls="implicit") as it:
        await it.greeted(**TLS)
        monkeypatch.setattr(it.server, "loop", Short())
        assert await (await it.connect()).is_closed()
        await it.until(lambda: not it.server._handshakes)
        monkeypatch.undo()
        await it.greeted(**TLS)


@run
async def test_a_system_that_lets_the_server_open_no_more_files(monkeypatch):
    monkeypatch.setattr("mqcore.mail.smtp.server.ACCEPT_AGAIN", 0.01)
    async with serving(tls="implicit") as it:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.create_connection(("127.0.0.1", it.port)):
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            await asyncio.sleep(0.05)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await it.greeted(**TLS)


@run
async def test_a_client_that_goes_away_under_tls_cancels_its_step():
    holds = Holds("message")
    async with serving({"10-hold": holds}, tls="implicit") as it:
        client = await it.greeted(**TLS)
        client.send(ALL.removeprefix(EHLO))
        await it.until(lambda: holds.held)
        client.leave()
        await it.until(lambda: holds.closed)
        assert it.gateway.report.counts.unfinished == 1


@run
async def test_a_big_message_and_much_read_ahead_under_tls():
    big = b"x" * 70 + b"\r\n"
    holds = Holds("message")
    async with serving({"10-hold": holds}, tls="implicit") as it:
        client = await it.greeted(**TLS)
        client.send(OPEN.removeprefix(EHLO) + big * 20_000 + b".\r\n")
        client.send(b"NOOP\r\n" * 50 + ALL.removeprefix(EHLO) + b"NOOP\r\n" * 200_000)
        await it.until(lambda: holds.held)
        (connection,) = it.server.host.connections
        await it.until(lambda: connection.is_paused)
        holds.release()
        await it.until(lambda: holds.held)
        holds.release()
        replies = codes([await client.reply() for _ in range(58)])
        assert (replies.count("250 2.6.0"), replies.count("250 2.0.0")) == (2, 50)
        assert untraced(mail.mime for mail in it.sink.mails) == [big * 20_000, TEXT]


# AUTH


@run
async def test_auth_is_not_offered_without_a_plugin_that_checks_it():
    async with serving(tls="implicit") as it:
        client = await it.connect(**TLS)
        await client.reply()
        assert "AUTH" not in await client.ask(EHLO)
        assert codes([await client.ask(PLAIN)]) == ["503 5.5.1"]


@run
async def test_auth():
    seen = []

    def mailfrom(context, message, address):
        seen.append(message.connection.authenticated)

    plugins = {"10-accounts": accounts(alice="secret"), "20-note": plugin(mailfrom=mailfrom)}
    async with serving(plugins, tls="implicit") as it:
        client = await it.connect(**TLS)
        await client.reply()
        assert "250-AUTH PLAIN LOGIN" in await client.ask(EHLO)
        await client.ask(MAIL)
        await client.ask(b"RSET\r\n")
        wrong = b"AUTH PLAIN " + base64.b64encode(b"\0alice\0wrong") + b"\r\n"
        assert await client.ask(wrong) == "535 5.7.8 login or password is wrong"
        assert codes([await client.ask(PLAIN)]) == ["235 2.7.0"]
        await client.ask(MAIL)
    assert seen == [False, True]


@run
async def test_auth_is_refused_unless_a_plugin_says_otherwise():
    async with serving({"10-silent": plugin(authenticate=lambda *arguments: None)}, tls="implicit") as it:
        client = await it.greeted(**TLS)
        assert codes([await client.ask(PLAIN)]) == ["535 5.7.8"]


@run
async def test_auth_is_not_a_thing_of_the_past():
    """Who was let in by another stage, or by an attempt that failed in the end, is not logged in by a wrong password."""

    def connect(context, message):
        message.connection.authenticated = True

    def authenticate(context, message, login, password):
        if login == "alice":
            message.connection.authenticated = True
            raise ValueError("a bug")

    async with serving({"10-odd": plugin(connect=connect, authenticate=authenticate)}, tls="implicit") as it:
        client = await it.greeted(**TLS)
        assert codes([await client.ask(PLAIN)]) == ["454 4.7.0"]
        assert codes([await client.ask(PLAIN.replace(b"alice", b"alicf"))]) != ["235 2.7.0"]
        other = b"AUTH PLAIN " + base64.b64encode(b"\0bob\0x") + b"\r\n"
        assert codes([await client.ask(other)]) == ["535 5.7.8"]


@run
async def test_a_plugin_may_refuse_a_login_with_a_reply_of_its_own():
    def authenticate(context, message, login, password):
        message.connection.authenticated = True
        message.reject(535, "5.7.8 this account is locked")

    async with serving({"10-locked": plugin(authenticate=authenticate)}, tls="implicit") as it:
        client = await it.greeted(**TLS)
        assert await client.ask(PLAIN) == "535 5.7.8 this account is locked"
        (connection,) = it.server.host.connections
        assert connection.info.authenticated is False


@run
async def test_auth_without_tls_only_where_it_is_allowed():
    async with serving({"10-accounts": accounts(alice="secret")}, tls="starttls") as it:
        client = await it.connect()
        await client.reply()
        assert "AUTH" not in await client.ask(EHLO)
        assert (await client.ask(PLAIN)).startswith("538 5.7.11 ")
    async with serving({"10-accounts": accounts(alice="secret")}, auth_without_tls=True) as it:
        client = await it.connect()
        await client.reply()
        assert "250-AUTH PLAIN LOGIN" in await client.ask(EHLO)
        assert codes([await client.ask(PLAIN)]) == ["235 2.7.0"]


@run
async def test_a_login_is_forgotten_when_tls_begins():
    seen = []

    def mailfrom(context, message, address):
        seen.append(message.connection.authenticated)

    plugins = {"10-accounts": accounts(alice="secret"), "20-note": plugin(mailfrom=mailfrom)}
    async with serving(plugins, tls="starttls", auth_without_tls=True) as it:
        client = await it.greeted()
        assert codes([await client.ask(PLAIN)]) == ["235 2.7.0"]
        await client.ask(b"STARTTLS\r\n")
        await client.start_tls(certificate().client)
        await client.ask(EHLO)
        await client.ask(MAIL)
    assert seen == [False]


# Certificates that cannot be used


def test_a_certificate_that_cannot_be_used(tmp_path):
    def complaint(certificate, key=None):
        with pytest.raises(SourceError) as raised:
            SmtpsSource("//127.0.0.1:0", tls_certificate=str(certificate), tls_key=key and str(key))
        return str(raised.value)

    good, junk, missing = certificate().file, tmp_path / "junk.pem", tmp_path / "missing.pem"
    junk.write_text("no certificate")
    assert complaint(missing) == f"cannot read {missing}: No such file or directory"
    assert complaint(good, missing) == f"cannot read {missing}: No such file or directory"
    assert complaint(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    _, begin, rest = good.read_bytes().partition(b"-----BEGIN CERTIFICATE")
    without_key = tmp_path / "certificate.pem"
    without_key.write_bytes(begin + rest)
    for file in (junk, without_key):
        assert complaint(file) == f"cannot use {file} for TLS: a certificate and its key, in PEM, are not there"
        assert complaint(without_key, file) == (
            f"cannot use {without_key} with the key {file} for TLS: a certificate and its key, in PEM, are not there"
        )


def test_a_key_of_another_certificate(tmp_path):
    ours, other = (trustme.CA().issue_cert("mx.example.org") for _ in range(2))
    ours.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    with pytest.raises(SourceError, match="the key is that of another certificate; give the one that was made with it"):
        SmtpSource("//127.0.0.1:0", tls_certificate=f"{tmp_path}/certificate.pem", tls_key=f"{tmp_path}/key.pem")


def test_a_key_with_a_password_is_not_asked_for(tmp_path):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(certificate().file.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    encryption = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    with pytest.raises(SourceError, match="the key has a password; take it away with `openssl pkey`"):
        SmtpSource("//127.0.0.1:0", tls_certificate=str(certificate().file), tls_key=str(locked))


@pytest.mark.parametrize("end", [lambda one: one.shut_down(), lambda one: one.end(421, "4.3.2 no more")])
@run
async def test_a_handshake_that_is_ended_before_it_began_ends_the_connection(end):
    async with serving(tls="starttls") as it:
        await it.greeted()
        (connection,) = it.server.host.connections
        connection.data_received(b"STARTTLS\r\n")
        end(connection)
        await it.until(lambda: not it.server.host.connections)
