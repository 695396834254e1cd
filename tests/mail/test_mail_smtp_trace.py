"""The trace of mails that come in: `Received`, and in mailboxes `Return-Path` and `Delivered-To`."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email
import email.utils
import re
import time

import pytest
from mail_tools import make_maildir, read_maildir, read_mbox, untraced
from sending_tools import next_server
from smtp_tools import ALL, EHLO, LHLO, MAIL, RCPT, TEXT, Client, certificate, plugin, run, serving

import mqcore
from mqcore.mail import FailedSink, Gateway, MaildirSink, MaildirSource, MboxSink, SmtpSource
from mqcore.mail.smtp._trace import Tracer
from mqcore.mail.smtp.sink import SmtpSink

BODY = b"DATA\r\n" + TEXT + b".\r\n"


async def stored(it, *, hello: bytes = EHLO, rest: bytes = ALL.removeprefix(EHLO), replies: int = 4) -> list[bytes]:
    """What the sink has when a client has said this."""
    client = await it.connect()
    assert (await client.reply())[:3] == "220"
    assert (await client.ask(hello))[:3] == "250"
    assert (await client.asks(rest, replies))[-1] == "250 2.6.0"
    return [mail.mime for mail in it.sink.mails]


def with_clause(mime: bytes) -> str:
    match = re.search(rb"\r\n\twith (\S+) id ", mime)
    assert match is not None, mime
    return match[1].decode()


@run
async def test_the_whole_line():
    """Byte for byte, in what plugins see from `mq_smtp_in_data` on, in what is stored, and in what the mail was."""
    seen = []

    def data(context, message, mime):
        seen.append((mime, message.mime))

    async with serving({"10-note": plugin(data=data)}, hostname="mx.example.org") as it:
        before = int(time.time())
        await stored(it)
        (mail,) = it.sink.mails
        url = it.gateway.source.url
    date = email.utils.parsedate_to_datetime(email.message_from_bytes(mail.mime)["Received"].rpartition(";")[2].strip())
    assert before <= date.timestamp() <= time.time()
    trace = (
        "Received: from client.example ([127.0.0.1])\r\n"
        f"\tby mx.example.org (mqcore {Tracer('mx.example.org', url).id})\r\n"
        f"\twith ESMTP id {mail.origin.id}\r\n"
        "\tfor <b@example.org>;\r\n"
        f"\t{email.utils.format_datetime(date)}\r\n"
    )
    assert mail.mime == mail.origin.mime == trace.encode() + TEXT
    assert seen == [(mail.mime, mail.mime)]
    assert (mail.origin.is_traced, mail.origin.loops) == (True, 0)


@pytest.mark.parametrize("text", ["2026-12-01T00:00:00+00:00", "2027-02-28T23:59:59-09:30", "2026-05-09T08:07:06+05:45"])
@run
async def test_the_date_of_any_day(monkeypatch, text):
    """With two digits for each number, as all others write it."""
    moment = datetime.datetime.fromisoformat(text)
    offset = int(moment.utcoffset().total_seconds())
    monkeypatch.setattr(time, "localtime", lambda seconds=None: time.struct_time((*moment.timetuple(), "", offset)))
    async with serving() as it:
        (mime,) = await stored(it)
    assert f";\r\n\t{email.utils.format_datetime(moment)}\r\n".encode() in mime


@run
async def test_one_line_for_all_recipients_which_names_none_of_them():
    async with serving() as it:
        recipients = b"".join(b"RCPT TO:<%d@example.org>\r\n" % number for number in range(200))
        mails = await stored(it, rest=MAIL + recipients + BODY, replies=203)
        assert len(mails) == 200 and len({id(mime) for mime in mails}) == 1
        assert b"\tfor " not in mails[0] and mails[0].count(b"Received:") == 1
        ids = [mail.origin.id for mail in it.sink.mails]
        assert len(set(ids)) == 200 and f" id {ids[0]};\r\n".encode() in mails[0]


@run
async def test_a_recipient_who_is_named_twice_is_one():
    async with serving() as it:
        (mime,) = await stored(it, rest=MAIL + RCPT + RCPT + BODY, replies=5)
        assert b"\r\n\tfor <b@example.org>;\r\n" in mime


@run
async def test_each_mail_of_a_connection_has_a_line_of_its_own():
    async with serving() as it:
        await stored(it)
        mails = await stored(it, rest=(MAIL + RCPT + BODY) * 3, replies=12)
        assert len(set(mails)) == 4 and all(mime.count(b"Received:") == 1 for mime in mails)
        for mail in it.sink.mails:
            assert f" id {mail.origin.id}\r\n".encode() in mail.mime


# What the protocol is called (RFC 3848)


@pytest.mark.parametrize(
    ("hello", "mail", "name"),
    [
        (b"HELO client.example\r\n", MAIL, "SMTP"),
        (EHLO, MAIL, "ESMTP"),
        (EHLO, b"MAIL FROM:<a@example.org> SMTPUTF8\r\n", "UTF8SMTP"),
    ],
)
@run
async def test_smtp(hello, mail, name):
    async with serving() as it:
        (mime,) = await stored(it, hello=hello, rest=mail + RCPT + BODY)
        assert with_clause(mime) == name


@run
async def test_the_name_changes_with_what_the_client_says():
    def login(context, message, *credentials):
        message.connection.authenticated = True

    async with serving({"10-in": plugin(authenticate=login)}, tls="starttls") as it:
        client = await it.greeted()
        for say, name in [
            (b"HELO client.example\r\n", "SMTP"),
            (EHLO, "ESMTP"),
            (b"STARTTLS\r\n", "ESMTPS"),
            (b"AUTH PLAIN AGEAYg==\r\n", "ESMTPSA"),
            (b"HELO other.example\r\n", "SMTP"),
        ]:
            assert (await client.ask(say))[0] == "2"
            if name == "ESMTPS":
                await client.start_tls(certificate().client)
                await client.ask(EHLO)
            assert (await client.asks(MAIL + RCPT + BODY, 4))[-1] == "250 2.6.0"
            assert with_clause(it.sink.mails[-1].mime) == name
        assert it.sink.mails[-1].mime.startswith(b"Received: from other.example ([127.0.0.1])\r\n")


@run
async def test_lmtp_on_a_unix_socket_where_the_client_has_no_address(tmp_path):
    async with serving(lmtp=True, at=f"unix:{tmp_path}/lmtp") as it:
        (mime,) = await stored(it, hello=LHLO)
        assert mime.startswith(b"Received: from client.example\r\n\tby ") and with_clause(mime) == "LMTP"


@run
async def test_ipv6():
    async with serving(at="//[::1]:0") as it:
        client = Client(*await asyncio.open_connection("::1", it.port))
        assert (await client.asks(ALL, 5))[-1] == "354"
        await client.reply()
        client.leave()
        assert it.sink.mails[0].mime.startswith(b"Received: from client.example ([IPv6:::1])\r\n")


# What a client cannot do


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (b"[192.0.2.1]", b"[192.0.2.1]"),
        (b"x(y);by", b"x?y??by"),
        (b'"<a@b>"\\', b"??a?b???"),
        (b"x" * 3000, b"x" * 255),
    ],
)
@run
async def test_a_name_of_the_client_that_would_be_more_than_a_name(name, written):
    async with serving() as it:
        (mime,) = await stored(it, hello=b"EHLO %b\r\n" % name)
        assert mime.startswith(b"Received: from %b ([127.0.0.1])\r\n\tby " % written)


@pytest.mark.parametrize(
    ("address", "is_there"),
    [
        ('"x>; y"@example.org', False),
        ('"x y"@example.org', True),
        ("x@[192.0.2.1]", True),
        ("postmaster", True),
        ("two words@example.org", False),
        ("x\u2028y@example.org", False),
        ("\udcff@example.org", False),
        ("\u00e9@example.org", True),
    ],
)
@run
async def test_only_an_address_that_is_nothing_else_is_named(address, is_there):
    def rcptto(context, message, _):
        message.recipient = address

    async with serving({"10-to": plugin(rcptto=rcptto)}) as it:
        (mime,) = await stored(it)
        assert (b"\tfor <%b>;\r\n" % address.encode(errors="surrogateescape") in mime) == is_there
        assert untraced([mime]) == [TEXT]


# The client's size is the client's


@pytest.mark.parametrize(("more", "said"), [(0, "250 2.6.0"), (1, "552 5.3.4")])
@run
async def test_the_limit_for_a_message_is_for_what_the_client_sends(more, said):
    async with serving(max_message_size=len(TEXT)) as it:
        client = await it.opened()
        client.send(b"x" * more + TEXT + b".\r\n")
        assert (await client.reply()).startswith(said)


@pytest.mark.parametrize("text", [b"", b"\r\n", b".\r\n", b"..\r\n.x\r\n"])
@run
async def test_odd_messages(text):
    async with serving() as it:
        client = await it.opened()
        content = b"".join(b"." * line.startswith(b".") + line for line in text.splitlines(keepends=True))
        assert (await client.ask(content + b".\r\n")).startswith("250 ")
        assert untraced(mail.mime for mail in it.sink.mails) == [text]


# Where there is to be none


@run
async def test_no_trace(tmp_path):
    sink = MaildirSink(str(tmp_path / "in"))
    async with serving(no_trace=True, sink=sink) as it:
        await stored(it)
    sink.close()
    assert read_maildir(tmp_path / "in") == [TEXT]


@pytest.mark.parametrize("no_trace", [False, True])
@run
async def test_to_the_next_server_without_a_trace_there_is_a_warning(no_trace, caplog):
    async with next_server() as server:
        sink = SmtpSink(f"//127.0.0.1:{server.port}")
        async with serving(sink=sink, one_recipient=True, no_trace=no_trace) as it:
            await stored(it)
        assert [content for *_, content in server.mails] == [TEXT] or not no_trace
    assert ("without a Received line" in caplog.text) == no_trace


# Mailboxes


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
@run
async def test_a_mailbox_says_from_whom_and_to_whom_a_mail_came(kind, tmp_path):
    """In place of what it said before; after all hooks."""

    def message(context, mail):
        mail.envelope, mail.recipient = "new@example.org", f"box-{mail.recipient}"
        mail.mime = b"return-path: <x@example.org>\r\n more\r\nX: 1\r\n" + mail.mime
        return False

    box = tmp_path / "in"
    sink = (MaildirSink if kind == "maildir" else MboxSink)(str(box))
    async with serving({"10-change": plugin(message=message)}, sink=sink, hostname="mx.example.org") as it:
        old = b"Received: from x by y; z\r\nReturn-path : <old@example.org>\r\nSubject: hello\r\n\r\nReturn-Path: <kept>\r\n"
        rest = MAIL + RCPT + b"RCPT TO:<c@example.org>\r\nDATA\r\n" + old + b".\r\n"
        await stored(it, rest=rest, replies=5)
    sink.close()
    mails = sorted((read_maildir if kind == "maildir" else read_mbox)(box))
    for mail, name in zip(mails, (b"b", b"c"), strict=True):
        assert re.fullmatch(
            rb"Return-Path: <new@example\.org>\r\nDelivered-To: box-%b@example\.org\r\nX: 1\r\n"
            rb"Received: from client\.example [^;]+;\r\n\t[^\n]+\r\nReceived: from x by y; z\r\n"
            rb"Subject: hello\r\n\r\nReturn-Path: <kept>\r\n" % name,
            mail,
        ), mail


@run
async def test_what_is_not_known_is_not_said_and_line_ends_stay(tmp_path):
    """A bounce has an empty sender."""

    def message(context, mail):
        mail.mime = mail.mime.replace(b"\r\n", b"\n")
        if mail.recipient.startswith("c"):
            mail.envelope = mail.recipient = None
        return False

    sink = MaildirSink(str(tmp_path / "in"))
    async with serving({"10-change": plugin(message=message)}, sink=sink) as it:
        await stored(it, rest=b"MAIL FROM:<>\r\n" + RCPT + b"RCPT TO:<c@example.org>\r\n" + BODY, replies=5)
    sink.close()
    nothing, both = sorted(read_maildir(tmp_path / "in"))
    assert nothing.startswith(b"Received: ") and b"\r" not in nothing
    assert both == b"Return-Path: <>\nDelivered-To: b@example.org\n" + nothing


@run
async def test_what_failed_is_as_it_came_in_and_is_given_no_second_line(tmp_path):
    def message(context, mail):
        mail.mime = b"spoilt"
        if mail.recipient.startswith("b"):
            mail.reject(550, "no")

    plugins = mqcore.Plugins()
    plugins.add("10-no", plugin(message=message))
    with (
        contextlib.closing(SmtpSource("//127.0.0.1:0")) as source,
        contextlib.closing(MaildirSink(str(tmp_path / "failed"))) as failed,
        contextlib.closing(MaildirSink(str(tmp_path / "in"))) as sink,
        mqcore.Dispatcher(plugins) as dispatcher,
    ):
        gateway = Gateway(dispatcher, source, sink, FailedSink(failed, source.url))
        running = asyncio.create_task(gateway.run())
        client = Client(*await asyncio.open_connection("127.0.0.1", source.port))
        two = MAIL + RCPT + b"RCPT TO:<c@example.org>\r\n" + BODY
        assert (await client.asks(EHLO + two, 7))[-1] == "250 2.6.0"
        gateway.stop()
        client.leave()
        await running
    (first,) = read_maildir(tmp_path / "failed")
    assert untraced([first]) == [TEXT] and first.startswith(b"Received: ")
    with (
        contextlib.closing(MaildirSource(str(tmp_path / "failed"))) as again,
        contextlib.closing(MaildirSink(str(tmp_path / "again"))) as sink,
        mqcore.Dispatcher(mqcore.Plugins()) as dispatcher,
    ):
        await Gateway(dispatcher, again, sink).run()
    assert read_maildir(tmp_path / "again") == [first]


@run
async def test_mail_from_files_is_copied_byte_for_byte(tmp_path):
    make_maildir(tmp_path / "from", [b"Return-Path: <x@y>\nReceived: from a by b\n\nhello\n"])
    sink = MboxSink(str(tmp_path / "to"))
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        await Gateway(dispatcher, MaildirSource(str(tmp_path / "from")), sink).run()
    sink.close()
    assert read_mbox(tmp_path / "to") == read_maildir(tmp_path / "from")


# The host's name


@run
async def test_the_hostname_in_the_greeting_and_to_ehlo(caplog):
    async with serving(hostname="mx.example.org") as it:
        client = await it.connect()
        assert await client.reply() == "220 mx.example.org ESMTP"
        assert (await client.ask(EHLO)).startswith("250-mx.example.org\n")
        assert await client.ask(b"HELO x\r\n") == "250 mx.example.org"
    assert caplog.text == ""


@run
async def test_the_hostname_to_the_next_server():
    async with next_server() as server:
        async with serving(sink=SmtpSink(f"//127.0.0.1:{server.port}", hostname="mx.example.org"), one_recipient=True) as it:
            await stored(it)
        assert "EHLO mx.example.org" in server.commands


@run
async def test_a_name_that_is_not_full(caplog):
    async with serving(hostname="mx") as it:
        await it.until(lambda: it.server)
    assert "mx is no full name of a host" in caplog.text


NO_NAMES = ["", "two words", "a..b", "-a.example", "a.example.", "m\u00fcller.example", "x" * 64, "a\r\nb", "a\n"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name(name):
    for kind in (SmtpSource, SmtpSink):
        with pytest.raises(ValueError, match="is no name of a host"):
            kind("//127.0.0.1:0", hostname=name)
