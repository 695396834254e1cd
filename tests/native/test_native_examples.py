"""The example plugins in C, compiled as their authors would, at work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cli_tools import serve
from native_tools import compile_plugin
from waiting import until

import mqcore
from mqcore.mail import Connection, Mail
from mqcore.native import accessors
from mqcore.testing import Clock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "native"


@pytest.fixture
def plugins(tmp_path):
    """Makes the Plugins with one of the examples; a shorter timeout makes tests short."""
    made = []

    def make(name, seconds="0.1f"):
        source = (EXAMPLES / f"{name}.c").read_text().replace("#define SECONDS 5.0f", f"#define SECONDS {seconds}")
        made.append(mqcore.Plugins(compile_plugin(tmp_path / f"{name}.so", source)))
        return made[-1]

    yield make
    for each in made:
        each.close()


DOCS = Path(__file__).resolve().parents[2] / "docs" / "native.md"


def test_the_example_of_the_guide(tmp_path):
    source, refuses = re.findall(r"^```c\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    path = compile_plugin(tmp_path / "20-slow.so", source.replace("2.0f", "0.01f") + refuses)

    async def main():
        mails = [Mail(b"", envelope=f"me@{host}.example") for host in ("slow", "fast")]
        config = {"20-slow": {"blocked": "me@bad.example"}}
        with mqcore.Plugins(path, config=config) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            outcomes = [await dispatcher.hook("mq_smtp_in_message")(mail) for mail in mails]
            assert sum(each.holds for each in dispatcher.stats().hooks) == 1
            for mail, sender in zip(mails, ("me@bad.example", "me@good.example"), strict=True):
                await dispatcher.hook("mq_smtp_in_mailfrom")(mail, sender)
        return outcomes, [mail.rejection for mail in mails]

    assert uvloop.run(main()) == ([mqcore.CONTINUE] * 2, [(550, "5.7.1 not from you"), None])


def test_the_accessors_of_the_guide():
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (source,) = (block for block in blocks if "accessors" in block)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    assert type(accessors.accessors_of(namespace["Session"])) is namespace["SessionAccessors"]


def test_minimal(plugins, caplog):
    caplog.set_level("INFO")

    async def main():
        mail = Mail(b"x")
        with plugins("10-minimal") as loaded, mqcore.Dispatcher(loaded) as dispatcher:
            assert await dispatcher.hook("mq_smtp_in_message")(mail) is mqcore.CONTINUE
        return mail

    assert uvloop.run(main()).json["local"] is True
    assert said(caplog, "10-minimal") == ["loaded", "unloaded"]


def said(caplog, plugin):
    """What the plugin has logged."""
    return [record.getMessage() for record in caplog.records if record.name == f"mqcore.plugins.{plugin}"]


class Session(mqcore.Message):
    user: bool = False


class SessionAccessors(accessors.Accessors):
    def set_authenticated(self, message, authenticated):
        message.user = authenticated


accessors.register(Session, SessionAccessors())


@pytest.mark.parametrize("password", ["right", "wrong", "hang up", "silence", "late"])
def test_login(plugins, tmp_path, monkeypatch, password, caplog):
    path = str(tmp_path / "socket")
    monkeypatch.setenv("LOGIN_SOCKET", path)
    too_late = password in ("silence", "late")

    async def serve(reader, writer):
        login, _, given = (await reader.readline()).decode().strip().partition(" ")
        if too_late:
            await reader.read()  # until the plugin has had enough
        if given in ("right", "wrong", "late"):
            await asyncio.sleep(0.01)
            writer.write(b"yes" if (login, given) == ("me", "right") else b"no")
        writer.close()
        with contextlib.suppress(ConnectionError):  # the plugin may have hung up first
            await writer.wait_closed()
        served.append(given)

    served = []

    async def main():
        async with await asyncio.start_unix_server(serve, path):
            # Where an answer is expected, a slow machine may take its time.
            with plugins("20-login", "0.1f" if too_late else "30.0f") as loaded, mqcore.Dispatcher(loaded) as dispatcher:
                hook = dispatcher.hook("mq_smtp_in_authenticate")
                sessions = [Session() for _ in range(20)]
                outcomes = await asyncio.gather(*(hook(session, "me", password) for session in sessions))
                stats = dispatcher.stats()
            await until(lambda: len(served) >= 20)
        assert set(outcomes) == {mqcore.CONTINUE}
        assert sum(each.refused for each in stats.hooks) == 0
        assert sum(each.holds for each in stats.hooks) == 20
        return {session.user for session in sessions}

    assert uvloop.run(main()) == {password == "right"}
    assert ("no answer of the login server" in caplog.text) == too_late


def test_login_without_a_server(plugins, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LOGIN_SOCKET", str(tmp_path / "nothing"))

    async def main():
        with plugins("20-login") as loaded, mqcore.Dispatcher(loaded) as dispatcher:
            session = Session()
            assert await dispatcher.hook("mq_smtp_in_authenticate")(session, "me", "right") is mqcore.CONTINUE
            return session.user

    assert uvloop.run(main()) is False
    assert "no connection to the login server" in caplog.text


def test_login_with_a_server_that_takes_no_connections(plugins, tmp_path, monkeypatch, caplog):
    """More wait for it than it lets wait: another one is not waited for."""
    path = str(tmp_path / "socket")
    monkeypatch.setenv("LOGIN_SOCKET", path)

    async def main():
        with plugins("20-login") as loaded, mqcore.Dispatcher(loaded) as dispatcher:
            return dispatcher.hook("mq_smtp_in_authenticate").run(Session(), "me", "right")

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(path)
        assert uvloop.run(main()) is mqcore.CONTINUE
    assert "no connection to the login server" in caplog.text


def test_login_that_is_still_asked_when_the_dispatcher_is_closed(plugins, tmp_path, monkeypatch):
    """The plugin keeps no connection to the server."""
    path = str(tmp_path / "socket")
    monkeypatch.setenv("LOGIN_SOCKET", path)

    async def main():
        with plugins("20-login") as loaded, mqcore.Dispatcher(loaded) as dispatcher:
            for _ in range(3):
                dispatcher.hook("mq_smtp_in_authenticate").run(Session(), "me", "right")
            assert dispatcher.stats().held == 3

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(3)
        uvloop.run(main())
        for _ in range(3):
            connection = stack.enter_context(server.accept()[0])
            connection.settimeout(60)
            assert [connection.recv(100), connection.recv(100)] == [b"me right\n", b""]


@pytest.mark.parametrize("early", [False, True], ids=["until silence", "closed before"])
def test_watch(plugins, tmp_path, monkeypatch, caplog, early):
    caplog.set_level("INFO")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setenv("WATCH_PIPE", str(pipe))

    lines = [f"line {number}" for number in range(4)]
    with Clock() as clock, plugins("30-watch", "5.0f") as loaded, mqcore.Dispatcher(loaded, clock.loop):
        for line in lines:
            clock.advance(4.5)  # again and again within the timeout
            pipe.write_text(line)
            assert clock.run_until(lambda line=line: line in said(caplog, "30-watch"))
        clock.advance(4.5 if early else 5)
    assert said(caplog, "30-watch") == lines + ([] if early else ["nothing came for a while"])


def test_greylist(tmp_path):
    """By network, sender and recipient; who comes again later passes, and others do not."""
    compile_plugin(tmp_path / "plugins" / "40-greylist.so", (EXAMPLES / "40-greylist.c").read_text())
    config = tmp_path / "mqcore.toml"
    sinks = ("--to", f"maildir:{tmp_path}/out", "--config", config, "--plugins", tmp_path / "plugins")
    greylisted = (450, b"4.7.1 greylisted, come again in a few minutes")
    config.write_text("[plugins.40-greylist]\ndelay = 0.3\n")
    with serve(*sinks) as server, server.client() as client:
        client.ehlo()
        client.mail("a@example.org")
        assert client.rcpt("b@example.org") == greylisted
        give_up = time.monotonic() + 60
        while (reply := client.rcpt("b@example.org")) == greylisted and time.monotonic() < give_up:
            time.sleep(0.1)
            client.rset()
            client.mail("a@example.org")
        assert reply[0] == 250
        assert client.rcpt("c@example.org") == greylisted
        assert client.rcpt("b@example.org")[0] == 250
    config.write_text("[plugins.40-greylist]\ndelay = 1000\n")
    with serve(*sinks) as server:
        for _ in range(3):
            with server.client() as client:
                client.ehlo()
                for sender in ("a@example.org", ""):
                    client.mail(sender)
                    assert client.rcpt("b@example.org") == greylisted
                    client.rset()


def test_greylist_knows_networks(tmp_path):
    path = compile_plugin(tmp_path / "40-greylist.so", (EXAMPLES / "40-greylist.c").read_text())

    async def main():
        async def ask(peer, recipient, **known):
            mail = Mail(b"", connection=Connection(1, peer, **known))
            await mailfrom(mail, "a@example.org")
            await rcptto(mail, recipient)
            await close(mail)
            return None if mail.rejection is None else mail.rejection.code

        async def wait_for(peer):
            async with asyncio.timeout(60):
                while await ask(peer, "b@example.org"):
                    await asyncio.sleep(0.02)

        config = {"40-greylist": {"delay": 0.1}}
        with mqcore.Plugins(path, config=config) as loaded, mqcore.Dispatcher(loaded) as dispatcher:
            mailfrom, rcptto, close = (dispatcher.hook(f"mq_smtp_in_{name}") for name in ("mailfrom", "rcptto", "close"))
            peers = [("192.0.2.7", "192.0.2.9", "192.0.3.7"), ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")]
            for first, near, far in peers:
                assert await ask(first, "b@example.org") == 450
                await wait_for(first)
                assert await ask(near, "b@example.org") is None
                assert await ask(far, "b@example.org") == await ask("", f"{far}@example.org") == 450
            assert await ask("192.0.3.8", "new@example.org", authenticated=True) is None
            for number in range(100_000):  # more than there are places for
                assert await ask("192.0.3.8", f"{number}@example.org") == 450
            assert sum(each.refused for each in dispatcher.stats().hooks) == 0

    uvloop.run(main())
