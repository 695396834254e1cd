"""Reload: all of it or nothing, while mail goes on and TLS clients are connected."""

from __future__ import annotations

import asyncio
import logging
import textwrap

import pytest
import trustme
import uvloop
from server_tools import issue, steered, trusting
from smtp_tools import ALL, EHLO, MAIL, OPEN, RCPT, TEXT, Holds, codes, plugin, run

from mqcore.mail import MboxSource
from mqcore.mail.base import Prepared
from mqcore.server import ReloadError, Server
from mqcore.server.options import PlaceOptions

HOLDS = """
    held = []

    def mq_smtp_in_message(context, message):
        if b"hold" in message.mime:
            held.append((context, message))
            return True
        message.json["seen by"] = {version}
    """


def write(folder, name, source):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return folder


def served(client):
    """The certificate that a client was shown."""
    return client.writer.get_extra_info("ssl_object").getpeercert(True)


async def secured(it, tls, **options):
    client = await it.connect(**options)
    if not options:
        assert (await client.reply()).startswith("220 ")
        assert "250-STARTTLS" in await client.ask(EHLO)
        assert await client.ask(b"STARTTLS\r\n") == "220 2.0.0 go ahead"
        await client.start_tls(tls)
    return client


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@pytest.mark.parametrize("round", range(1))
def test_certificates(tmp_path, kind, round):
    @run
    async def rotate():
        authority = trustme.CA()
        tls, file = trusting(authority), tmp_path / "server.pem"
        first = issue(authority, file)
        options = {"ssl": tls, "server_hostname": "localhost"} if kind == "implicit" else {}
        async with steered(tmp_path, tls=kind, tls_certificate=str(file)) as at:
            at.it.gateway.source.prepare(at.chosen).commit()  # `serving` has one of its own
            old = await secured(at.it, tls, **options)
            assert served(old) == first
            second = issue(authority, file)
            assert at.server.reload().changed == ("the certificate",)
            new = await secured(at.it, tls, **options)
            assert (served(old), served(new)) == (first, second)
            for client in (old, new):
                if kind == "implicit":
                    await client.reply()
                assert (await client.asks(ALL, 5))[-1] == "250 2.6.0"
            assert at.server.reload().changed == ()

    rotate()


BAD = {
    "another key": ("with the key", lambda file, key, authority: issue(authority, key)),
    "no file": ("No such file", lambda file, key, authority: file.unlink()),
    "nonsense": ("cannot use", lambda file, key, authority: file.write_text("nonsense")),
    "half of it": ("cannot use", lambda file, key, authority: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])),
}


@pytest.mark.parametrize("fault", BAD)
@run
async def test_a_certificate_that_cannot_be_used_leaves_plugins_too_as_they_were(tmp_path, fault, caplog):
    text, break_it = BAD[fault]
    authority, file, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    tls = trusting(authority)
    first = issue(authority, file)
    key.write_bytes(file.read_bytes())
    plugins = write(tmp_path / "plugins", "10-version", HOLDS.format(version=1))
    async with steered(tmp_path, tls="starttls") as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        at.chosen.update(tls_certificate=str(file), tls_key=str(key))
        at.server.reload()
        before = at.server.plugins.snapshot
        write(plugins, "10-version", HOLDS.format(version=2))
        good = file.read_bytes(), key.read_bytes()
        break_it(file, key, authority)
        with pytest.raises(ReloadError, match=text):
            at.server.reload()
        assert at.server.plugins.snapshot is before
        client = await secured(at.it, tls)
        assert served(client) == first
        assert (await client.asks(ALL, 5))[-1] == "250 2.6.0"
        assert at.it.sink.mails[-1].json["seen by"] == 1
        assert at.server.reloads.failed == 1
        assert text in at.server.reloads.error
        assert "not reloaded, all stays as it was: cannot" in caplog.text
        file.write_bytes(good[0])
        key.write_bytes(good[1])
        at.server.reload()
        assert at.server.plugins.snapshot is not before
        assert at.server.reloads.error is None
        assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
        assert at.it.sink.mails[-1].json["seen by"] == 2


@pytest.mark.parametrize("source", ["def mq_smtp_in_message(context): pass", "1 +", "import no_such", "raise SystemExit(3)"])
@run
async def test_a_plugin_that_cannot_be_loaded_leaves_the_certificate_as_it_was(tmp_path, source):
    authority, file = trustme.CA(), tmp_path / "cert.pem"
    tls, first = trusting(authority), issue(authority, file)
    plugins = write(tmp_path / "plugins", "10-version", HOLDS.format(version=1))
    async with steered(tmp_path, tls="starttls") as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        at.chosen.update(tls_certificate=str(file))
        at.server.reload()
        issue(authority, file)
        at.chosen.update(max_recipients=1)
        write(plugins, "10-version", source)
        with pytest.raises(ReloadError, match="10-version"):
            at.server.reload()
        client = await secured(at.it, tls)
        assert served(client) == first
        two = EHLO + MAIL + RCPT + RCPT.replace(b"b@", b"c@")
        assert await client.asks(two, 4) == ["250", "250 2.1.0", "250 2.1.5", "250 2.1.5"]


@run
async def test_limits_are_for_those_who_connect_from_then_on(tmp_path):
    async with steered(tmp_path) as at:
        at.chosen.update(max_recipients=5)
        assert at.server.reload().changed == ("max-recipients",)
        old = await at.it.greeted()
        at.chosen.update(max_recipients=1, max_message_size=100, max_connections=3, timeout=7)
        assert at.server.reload().changed == ("max-connections", "max-message-size", "max-recipients", "timeout")
        new = await at.it.connect()
        assert (await new.reply()).startswith("220 ")
        assert "250-SIZE 100\n" in await new.ask(EHLO)
        two = MAIL + RCPT + RCPT.replace(b"b@", b"c@")
        assert await old.asks(two, 3) == ["250 2.1.0", "250 2.1.5", "250 2.1.5"]
        assert await new.asks(two, 3) == ["250 2.1.0", "250 2.1.5", "452 4.5.3"]
        await at.it.greeted()
        assert (await (await at.it.connect()).reply()).startswith("421 4.3.2 too many connections")
        at.chosen.clear()
        assert at.server.reload().changed == ("max-connections", "max-message-size", "max-recipients", "timeout")
        await at.it.greeted()
        assert at.server.reload().changed == ()


@run
async def test_what_cannot_change_is_told_and_stays(tmp_path, caplog):
    async with steered(tmp_path, hostname="mx.example") as at:
        at.chosen.update(hostname="other.example", lenient=True, max_recipients=7)
        for _ in range(2):  # each time, as long as it is so
            done = at.server.reload()
            assert done.needs_restart == ("hostname", "lenient")
        client = await at.it.connect()
        assert (await client.reply()).startswith("220 mx.example")
        assert at.it.gateway.source.max_recipients == 7
        assert "as before until the next start: hostname, lenient" in caplog.text
        assert {record.levelno for record in caplog.records if "until the next start" in record.message} == {logging.WARNING}


@run
async def test_a_certificate_that_is_taken_away_stays_until_the_next_start(tmp_path):
    """Somebody may have been offered it."""
    authority, file = trustme.CA(), tmp_path / "cert.pem"
    tls, first = trusting(authority), issue(authority, file)
    async with steered(tmp_path) as at:
        assert "STARTTLS" not in await (await at.it.greeted()).ask(EHLO)
        at.chosen.update(tls_certificate=str(file))
        assert at.server.reload().changed == ("tls-certificate", "the certificate")
        offered = await at.it.connect()
        await offered.reply()
        assert "250-STARTTLS" in await offered.ask(EHLO)
        at.chosen.clear()
        for _ in range(2):
            done = at.server.reload()
            assert (done.changed, done.needs_restart) == ((), ("tls-certificate",))
        assert await offered.ask(b"STARTTLS\r\n") == "220 2.0.0 go ahead"
        await offered.start_tls(tls)
        assert served(offered) == first


@run
async def test_logins_are_offered_when_a_plugin_takes_them(tmp_path):
    source = "def mq_smtp_in_authenticate(context, message, login, password): message.connection.authenticated = True"
    async with steered(tmp_path, auth_without_tls=True) as at:
        assert "AUTH" not in await (await at.it.greeted()).ask(EHLO)
        at.it.gateway.dispatcher.plugins.load(write(tmp_path / "plugins", "10-login", source))
        assert "AUTH" in await (await at.it.greeted()).ask(EHLO)
        at.server.pause("10-login")
        assert "AUTH" not in await (await at.it.greeted()).ask(EHLO)


@run
async def test_wrong_configuration_is_told(tmp_path):
    async with steered(tmp_path) as at:
        before = at.server.plugins.snapshot

        def read():
            raise ValueError("mqcore.toml: [run] has max-recipient, which is no option that it may have")

        at.server.parts = [read]
        with pytest.raises(ReloadError, match="max-recipient"):
            at.server.reload()
        assert at.server.plugins.snapshot is before


@run
async def test_a_part_with_a_fault_of_its_own(tmp_path, caplog):
    async with steered(tmp_path) as at:
        at.server.parts.append(lambda: 1 / 0)
        with pytest.raises(ReloadError, match="ZeroDivisionError"):
            at.server.reload()
        assert "Traceback" in caplog.text


LOGIN = "def mq_smtp_in_authenticate(context, message, login, password): message.connection.authenticated = True"


@run
async def test_what_a_start_refuses_a_reload_refuses(tmp_path):
    """The file of a plugin may be gone for a moment: then nobody could send mail any more."""
    plugins = write(tmp_path / "plugins", "10-login", LOGIN)
    async with steered(tmp_path, auth_without_tls=True) as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        at.chosen.update(auth_without_tls=True, require_login=True)
        assert at.server.reload().changed == ("auth-without-tls", "require-login")
        (plugins / "10-login.py").rename(tmp_path / "kept")
        before = at.server.plugins.snapshot
        with pytest.raises(ReloadError, match="--require-login: no plugin has the hook mq_smtp_in_authenticate"):
            at.server.reload()
        assert at.server.plugins.snapshot is before
        assert "AUTH" in await (await at.it.greeted()).ask(EHLO)
        at.chosen.update(require_login=False)
        at.server.reload()
        assert "AUTH" not in await (await at.it.greeted()).ask(EHLO)
        at.chosen.update(require_login=True)
        with pytest.raises(ReloadError, match="--require-login"):
            at.server.reload()
        client = await at.it.greeted()
        assert (await client.asks(ALL, 5))[-1] == "250 2.6.0"


@run
async def test_a_plugin_that_will_not_do_is_not_initialized(tmp_path):
    """Nothing of what a reload has loaded is begun before all parts accept it."""
    plugins = write(tmp_path / "plugins", "10-a", "def mq_smtp_in_connect(context, message): pass")
    async with steered(tmp_path) as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        told = []

        def check(plugins):
            told.extend((plugin.name, *plugin.hooks) for plugin in plugins)
            raise ValueError("these will not do")

        at.server.parts.append(lambda: Prepared(check=check))
        write(plugins, "10-a", f"def mq_initialize(): open({str(tmp_path / 'began')!r}, 'w')\ndef mq_smtp_in_close(c, m): pass")
        with pytest.raises(ReloadError, match="these will not do"):
            at.server.reload()
        assert told == [("10-a", "mq_smtp_in_close")]
        assert not (tmp_path / "began").exists()


@run
async def test_a_part_that_cannot_be_put_in_force(tmp_path, caplog):
    """Which none should do. The others are, as the plugins are already, and it is no success."""
    async with steered(tmp_path) as at:
        at.chosen.update(max_recipients=1)
        done = []
        at.server.parts.insert(0, lambda: Prepared(lambda: 1 / 0))
        at.server.parts.append(lambda: Prepared(lambda: done.append(1)))
        with pytest.raises(ReloadError, match="reloaded, but for a part that failed.*ZeroDivisionError"):
            at.server.reload()
        assert (at.server.reloads.succeeded, at.server.reloads.failed, done) == (0, 1, [1])
        assert at.it.gateway.source.max_recipients == 1
        (record,) = [each for each in caplog.records if each.levelno == logging.CRITICAL]
        assert record.exc_info


@run
async def test_what_a_reload_keeps_the_loop_for_is_a_reloads(tmp_path):
    """And nobody's that the watchdog does not know."""
    plugins = write(tmp_path / "plugins", "10-slow", "import time\ntime.sleep(0.1)\ndef mq_smtp_in_close(c, m): pass")
    async with steered(tmp_path, watchdog=0.02) as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        await asyncio.sleep(0)
        at.server.reload()
        blocked = [(one.plugin, one.hook) for one in at.server.dispatcher.lag().blocked]
        assert (None, "reload") in blocked


async def reload_under_load(at, plugins, client, count):
    """What is held over all of them goes on in the end, and each mail is answered."""
    message = ALL.removeprefix(EHLO)
    for number in range(count):
        write(plugins, "20-version", f'def mq_smtp_in_message(context, message): message.json["version"] = {number}')
        client.send(message)
        at.server.reload()
        for _ in range(4):
            reply = await client.reply()
        assert codes([reply]) == ["250 2.6.0"]
        assert at.it.sink.mails[-1].json["version"] == number


@run
async def test_again_and_again_under_load(tmp_path):
    await again_and_again(tmp_path, 30)


@pytest.mark.slow
def test_a_thousand_times_under_load(tmp_path):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(again_and_again(tmp_path, 1000), 280))


async def again_and_again(tmp_path, count):
    authority, file = trustme.CA(), tmp_path / "cert.pem"
    tls = trusting(authority)
    issue(authority, file)
    plugins = write(tmp_path / "plugins", "20-version", "def mq_smtp_in_message(context, message): pass")
    async with steered(tmp_path, {"10-hold": (holds := Holds("data"))}, tls="starttls") as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        at.chosen.update(tls_certificate=str(file))
        at.server.reload()
        waiting = await secured(at.it, tls)
        waiting.send(OPEN + TEXT + b".\r\n")
        await at.it.until(lambda: holds.held)
        at.server.pause("10-hold")
        client = await secured(at.it, tls)
        assert (await client.ask(EHLO)).startswith("250-")
        await reload_under_load(at, plugins, client, count)
        assert at.server.reloads.succeeded == count + 1
        assert at.server.dispatcher.stats().held == 1
        holds.release()
        assert codes([await waiting.reply() for _ in range(5)])[-1] == "250 2.6.0"
        assert len(at.it.sink.mails) == count + 1


@run
async def test_held_mails_finish_on_the_old_chain(tmp_path):
    plugins = write(tmp_path / "plugins", "10-hold", HOLDS.format(version=1))
    write(plugins, "20-tag", 'def mq_smtp_in_message(context, message): message.json["tag"] = "old"')
    async with steered(tmp_path) as at:
        at.it.gateway.dispatcher.plugins.load(plugins)
        old = at.server.plugins.snapshot[0].hooks["mq_smtp_in_message"].__globals__["held"]
        client = await at.it.greeted()
        client.send(OPEN.removeprefix(EHLO) + b"Subject: hold\r\n\r\n.\r\n")
        await at.it.until(lambda: old)
        write(plugins, "20-tag", 'def mq_smtp_in_message(context, message): message.json["tag"] = "new"')
        at.server.reload()
        other = await at.it.greeted()
        assert (await other.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
        context, message = old.pop()
        context.continue_(message)
        assert codes([await client.reply() for _ in range(4)])[-1] == "250 2.6.0"
        assert [mail.json["tag"] for mail in at.it.sink.mails] == ["new", "old"]


@run
async def test_of_a_plugin_itself(tmp_path):
    """A hook may ask for it, as it is between steps that the new chains come."""
    async with steered(tmp_path) as at:
        at.it.gateway.dispatcher.plugins.add("10-reload", plugin(mailfrom=lambda *_: at.server.reload() and None))
        client = await at.it.greeted()
        assert (await client.asks(ALL.removeprefix(EHLO), 4))[-1] == "250 2.6.0"
        assert at.server.reloads.succeeded == 1


def test_places_that_have_nothing_to_change(tmp_path):
    (tmp_path / "mbox").write_bytes(b"")
    source = MboxSource(str(tmp_path / "mbox"))
    assert PlaceOptions([source], [{}]).prepare([{"anything": 1}]).needs_restart == ("anything",)
    source.close()
    assert Server is not None and asyncio is not None


@run
async def test_the_status_is_logged_whatever_the_level(tmp_path, caplog):
    caplog.set_level(logging.ERROR, "mqcore.server")
    caplog.handler.setLevel(logging.NOTSET)
    async with steered(tmp_path, {"10-hold": Holds("connect")}) as at:
        await at.it.connect()
        await at.it.until(lambda: at.server.dispatcher.stats().held)
        at.server.log_status()
        (record,) = [each for each in caplog.records if each.name == "mqcore.server"]
        lines = record.getMessage().split("\n")
        assert lines[:2] == ["status", "state: running"]
        assert lines[-1].startswith("held: id='00000000")
        assert "plugin='10-hold' hook='mq_smtp_in_connect'" in lines[-1]


@run
async def test_a_client_adds_nothing_to_the_status_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mqcore.server")
    async with steered(tmp_path, {"10-hold": (holds := Holds("rcptto"))}) as at:
        client = await at.it.greeted()
        client.send(b'MAIL FROM:<"x plugin=20-other age=9999"@e.org>\r\n' + RCPT)
        await at.it.until(lambda: holds.held)
        at.server.log_status()
        line = caplog.records[-1].getMessage().split("\n")[-1]
        assert "envelope='\"x plugin=20-other age=9999\"@e.org'" in line
