"""Refusals are counted by stage and code, logged, and told to plugins."""

from __future__ import annotations

import asyncio
import logging
import ssl

import pytest
from sending_tools import NextServer
from smtp_tools import ALL, EHLO, MAIL, OPEN, RCPT, TEXT, ListSink, plugin, run, serving
from waiting import until

import mqcore
from mqcore.mail import SmtpSink, refusals
from mqcore.mail.refusals import Refusals, quoted


@pytest.fixture(autouse=True)
def lines(caplog):
    caplog.set_level(logging.INFO, refusals.log.name)
    return lambda: [record.getMessage() for record in caplog.records if record.name == refusals.log.name]


def refuse(context, message, *arguments):
    message.reject(550, "5.7.1 no")


CLIENT = "client='127.0.0.1' helo='client.example'"


@pytest.mark.parametrize(
    ("stage", "say", "about"),
    [
        ("connect", b"", "client='127.0.0.1'"),
        ("mailfrom", EHLO + MAIL, f"{CLIENT} sender='a@example.org'"),
        ("rcptto", EHLO + MAIL + RCPT, f"{CLIENT} sender='a@example.org' recipient='b@example.org'"),
        ("data", OPEN + TEXT + b".\r\n", f"{CLIENT} sender='a@example.org'"),
    ],
)
@run
async def test_by_a_plugin(lines, stage, say, about):
    async with serving({"10-no": plugin(**{stage: refuse})}) as it:
        client = await it.connect()
        client.send(say)
        await it.until(lambda: it.gateway.refusals.counts)
    assert it.gateway.report.refusals == {(stage, 550): 1}
    assert lines() == [f"stage={stage} {about} plugin='10-no' reply='550 5.7.1 no'"]


@run
async def test_of_a_mail(lines):
    async with serving({"10-no": plugin(message=refuse)}) as it:
        client = await it.opened()
        await client.ask(TEXT + b".\r\n")
    (line,) = lines()
    assert line.startswith(f"stage=message {CLIENT} mail=")
    assert line.endswith("sender='a@example.org' recipient='b@example.org' plugin='10-no' reply='550 5.7.1 no'")
    assert it.gateway.report.as_dict()["refusals"] == [{"stage": "message", "code": 550, "count": 1}]


@run
async def test_a_step_that_fails(lines):
    def fail(context, message, address):
        raise ValueError("a\nb")

    async with serving({"10-bad": plugin(rcptto=fail)}) as it:
        client = await it.greeted()
        await client.asks(MAIL + RCPT, 2)
    (line,) = lines()
    assert line.endswith(r"error='ValueError: a\nb, plugin 10-bad, hook mq_smtp_in_rcptto' reply='451 "
                         "4.3.0 this server has a problem; try again later'")


@pytest.mark.parametrize(
    ("say", "stage", "code", "about"),
    [
        (b"HELO\r\n", "command", 501, ""),
        (b"NONSENSE\r\n", "command", 500, ""),
        (b"EXPN x\r\n", "command", 502, ""),
        (b"MAIL FROM:b@@x\r\n", "mailfrom", 501, " sender='FROM:b@@x'"),
        (MAIL + b"RCPT TO:b\r\n", "rcptto", 501, " sender='a@example.org' recipient='TO:b'"),
        (b"MAIL FROM: <b@x.org> SIZE=99999999999\r\n", "mailfrom", 552, " sender='b@x.org'"),
        (MAIL + b"RCPT TO:<c@x.org> NOTIFY=NEVER\r\n", "rcptto", 555, " sender='a@example.org' recipient='c@x.org'"),
        (MAIL + b"DATA\r\n", "data", 554, " sender='a@example.org'"),
        (MAIL + RCPT + b"DATA\r\na\nb\r\n.\r\n", "data", 554, " sender='a@example.org'"),
        (b"AUTH PLAIN ====\r\n", "authenticate", 501, ""),
        (b"AUTH LOGIN\r\nhello\r\n", "authenticate", 501, ""),
        (b"AUTH LOGIN\r\nYQ==\r\nsecret!\r\n", "authenticate", 501, ""),
        (b"GET / HTTP/1.1\r\n", "command", 421, ""),
        (b"STARTTLS\r\n", "secure", 502, ""),
    ],
)
@run
async def test_by_the_protocol(lines, say, stage, code, about):
    plugins = {"10-login": plugin(authenticate=lambda context, message, login, password: None)}
    async with serving(plugins, auth_without_tls=True) as it:
        client = await it.greeted()
        client.send(say)
        await it.until(lambda: it.gateway.refusals.counts)
    assert it.gateway.report.refusals.keys() == {(stage, code)}
    (line,) = lines()[:1]
    found, _, reply = line.partition(" reply=")
    if stage in ("mailfrom", "rcptto"):
        assert found == f"stage={stage} {CLIENT}{about}"
    assert found.startswith(f"stage={stage} {CLIENT}") and reply.startswith(f"'{code} ")
    assert "secret" not in line and "hello" not in line


@run
async def test_by_a_limit(lines):
    async with serving(max_recipients=2, max_message_size=100) as it:
        client = await it.greeted()
        await client.asks(MAIL + RCPT * 5 + b"DATA\r\n" + b"x" * 2000 + b"\r\n.\r\n", 8)
    assert it.gateway.report.refusals == {("rcptto", 452): 3, ("data", 552): 1}
    assert len(lines()) == 4


@pytest.mark.parametrize("tls", [None, "implicit"])
@run
async def test_too_many_connections(lines, tls):
    async with serving(max_connections_per_ip=1, tls=tls) as it:
        unchecked = ssl._create_unverified_context() if tls else None
        first = await it.connect(ssl=unchecked)
        await first.reply()
        if tls:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await it.connect(ssl=unchecked)
        else:
            assert (await (await it.connect()).reply())[:9] == "421 4.7.0"
    assert it.gateway.report.refusals == {("connect", 421): 1}
    assert lines()[0].startswith("stage=connect client='127.0.0.1' reply='421 4.7.0 ")


@run
async def test_a_client_that_was_refused_once_counts_once(lines):
    async with serving({"10-no": plugin(connect=refuse)}) as it:
        client = await it.connect()
        await client.reply()
        assert (await client.asks(EHLO + MAIL + RCPT, 3)) == ["550 5.7.1"] * 3
    assert it.gateway.report.refusals == {("connect", 550): 1}


@run
async def test_by_the_next_server(lines):
    server = NextServer({"rcptto": ["550 5.1.1 nobody"]})
    await server.start()
    try:
        async with serving(sink=SmtpSink(f"//127.0.0.1:{server.port}"), one_recipient=True) as it:
            client = await it.opened()
            assert (await client.ask(TEXT + b".\r\n"))[:9] == "550 5.1.1"
            await it.until(lambda: not it.gateway.in_flight)
    finally:
        await server.stop()
    assert it.gateway.report.refusals == {("delivery", 550): 1}
    assert "plugin=" not in lines()[0] and lines()[0].endswith("reply='550 5.1.1 nobody'")


@run
async def test_a_sink_that_fails(lines):
    async with serving() as it:
        it.sink.error = "no disk"
        client = await it.opened()
        assert (await client.ask(TEXT + b".\r\n"))[:9] == "451 4.3.0"
    assert it.gateway.report.refusals == {("delivery", 451): 1}


# Lines that a client would like to forge


EVIL = ["a' plugin='x", 'a" b', "a\nINFO root: all is well", "\x1b[2J", "\u202e", "\u2028", "\ud800", "\\n"]


@pytest.mark.parametrize("evil", EVIL)
def test_a_value_is_one_word(evil):
    text = quoted(evil)
    assert text.isprintable()
    quote = text[0]
    assert text[-1] == quote and quote not in text[1:-1].replace(f"\\{quote}", "")
    assert eval(text) == evil
    assert len(quoted("x" * 10_000)) < 220


@run
async def test_a_client_cannot_forge_a_line(lines):
    async with serving({"10-no": plugin(rcptto=refuse)}) as it:
        client = await it.connect()
        await client.reply()
        await client.ask("EHLO x'\u00a0plugin='y\u202e\r\n".encode())
        await client.ask(b"EHLO x'plugin='y\r\n")
        address = '"a> reply=\'250 ok\'"@example.org'
        await client.asks(MAIL + f"RCPT TO:<{address}>\r\n".encode(), 2)
    line = lines()[-1]
    assert 'helo="x\'plugin=\'y"' in line
    assert f"recipient={address!r}" in line


# Many


@run
async def test_a_hundred_lines_a_second(lines, monkeypatch):
    monkeypatch.setattr(refusals, "PERIOD", 1e6)
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        several = Refusals(dispatcher)
        for _ in range(250):
            several.note("connect", 421, "4.3.2 no")
        assert len(lines()) == refusals.MOST_LINES
        several.close()
        assert lines()[refusals.MOST_LINES :] == ["... and 150 more"]
        several.note("connect", 421, "4.3.2 no")
        assert lines()[-1] == "stage=connect reply='421 4.3.2 no'"
        assert several.counts == {("connect", 421): 251}
        several.close()


@run
async def test_the_next_second_has_lines_again(lines, monkeypatch):
    monkeypatch.setattr(refusals, "PERIOD", 0.001)
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        several = Refusals(dispatcher)
        for _ in range(101):
            several.note("connect", 421, "4.3.2 no")
        await until(lambda: lines()[-1] == "... and 1 more")
        several.note("connect", 421, "4.3.2 no")
        assert lines()[-1] == "stage=connect reply='421 4.3.2 no'"
        several.close()


# The hook


class Told:
    """Is told, and tries to change things."""

    def __init__(self, then=None):
        self.told = []
        self.then = then

    def mq_smtp_in_rejected(self, context, message):
        self.told.append((message.rejection, message.rejected_by, message.envelope, message.recipient, message.mime))
        return self.then(context, message) if self.then else None


def meddle(context, message):
    message.rejection = None
    message.recipient = "c@example.org"
    message.json["recipients"] = []
    message.discard()
    raise ValueError


THEN = {
    "nothing": None,
    "meddles": meddle,
    "holds": lambda context, message: context.start_timer(3600, context.continue_, message) and mqcore.HOLD,
    "forgets": lambda context, message: mqcore.HOLD,
    "is wrong": lambda context, message: 1,
}


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("stage", ["connect", "mailfrom", "rcptto", "data", "message"])
@run
async def test_what_it_is_told_and_that_it_changes_nothing(stage, then):
    told = Told(THEN[then])
    async with serving({"10-no": plugin(**{stage: refuse}), "20-told": told}) as it:
        client = await it.connect()
        say = {"connect": b"", "mailfrom": EHLO + MAIL, "rcptto": EHLO + MAIL + RCPT}.get(stage, ALL)
        client.send(say + b"NOOP\r\n")
        replies = [await client.reply() for _ in range(say.count(b"\r\n") + 2 if say is not ALL else 7)]
        assert replies[-2 if stage != "connect" else 0] == "550 5.7.1 no"
        assert replies[-1] == ("550 5.7.1 no" if stage == "connect" else "250 2.0.0 ok")
        await it.until(lambda: told.told)
    known = {"connect": (None, None), "mailfrom": ("a@example.org", None), "data": ("a@example.org", None)}
    envelope, recipient = known.get(stage, ("a@example.org", "b@example.org"))
    mail = told.told[0][-1]
    assert told.told == [((550, "5.7.1 no"), "10-no", envelope, recipient, mail)]
    assert mail.endswith(TEXT) if stage in ("data", "message") else mail == b""


@run
async def test_it_is_not_told_of_what_no_plugin_rejected():
    told = Told()

    def fail(context, message, address):
        if address.startswith("fail"):
            raise ValueError

    async with serving({"10-fail": plugin(rcptto=fail), "20-told": told}, max_recipients=1) as it:
        client = await it.greeted()
        await client.asks(b"NONSENSE\r\n" + MAIL + b"RCPT TO:<fail@example.org>\r\n" + RCPT + RCPT + b"AUTH x\r\n", 6)
        await asyncio.sleep(0.01)
    assert told.told == [] and it.gateway.report.refusals.total() == 4


@run
async def test_a_list_of_hooks_without_it():
    names = [spec for spec in mqcore.MAILERQ_HOOKS if spec.name != "mq_smtp_in_rejected"]
    plugins = mqcore.Plugins(hooks=names)
    plugins.add("10-no", plugin(message=refuse))
    with mqcore.Dispatcher(plugins) as dispatcher:
        from mqcore.mail import Gateway, Mail, Source, Transaction

        class One(Source):
            url = "one:"

            async def run(self, gateway):
                gateway.offer([Transaction([Mail(b"x")])])

            def stop(self):
                pass

        report = await Gateway(dispatcher, One(), ListSink()).run()
    assert report.refusals == {("message", 550): 1}
