"""What native plugins see and change of messages: of mails, and of messages and connections of a host's own."""

from __future__ import annotations

import ctypes
import gc
import json
from types import SimpleNamespace

import pytest
import uvloop
from cli_tools import serve
from mail_tools import read_maildir
from native_tools import Puppet, compile_plugin, mq, refused, start

import mqcore
from mqcore.mail import Connection, Mail
from mqcore.native import accessors


def look(owner, puppet, message, function):
    """What `function(connection, message)` says in the hook."""
    results = []

    def step(context, connection, handle):
        results.append(function(connection, handle))
        return False

    puppet.step = step
    if not owner.dispatchers:
        start(owner, [puppet])
    owner.dispatchers[-1].hook("mq_step").run(message)
    assert not puppet.errors, puppet.errors
    return results[0]


def test_a_mail(owner, puppet):
    known = {"recipient": "to@example.com", "local": True, "ä": 1}
    mail = Mail(b"Subject: x\n\n\xff\n", envelope="from@example.com", json=known)

    def play(connection, message):
        return (
            mq.MQ_email(mq.MQ_envelope(message)), mq.MQ_email(mq.MQ_recipient(message)), mq.MQ_mime(message),
            mq.MQ_local(message), json.loads(mq.MQ_json(message)),
        )

    assert look(owner, puppet, mail, play) == (
        b"from@example.com", b"to@example.com", b"Subject: x\n\n\xff\n", True, mail.json)


def test_a_mail_is_changed(owner, puppet):
    mail = Mail(b"old")

    def play(connection, message):
        mq.MQ_setEnvelope(message, b"from@example.com and more", 16)
        mq.MQ_setRecipient(message, "tö@example.com".encode(), 15)
        mq.MQ_setMime(message, b"new\0and more", 5)
        mq.MQ_setLocal(message, True)
        return mq.MQ_email(mq.MQ_envelope(message)), mq.MQ_email(mq.MQ_recipient(message)), mq.MQ_mime(message)

    assert look(owner, puppet, mail, play) == (b"from@example.com", "tö@example.com".encode(), b"new")
    assert (mail.envelope, mail.recipient, mail.mime, mail.json["local"]) == (
        "from@example.com", "tö@example.com", b"new\0a", True)
    look(owner, puppet, mail, lambda _, message: mq.MQ_setJson(message, b'{"key": [1, 2], "envelope": ""}', 31))
    assert mail.json == {"key": [1, 2], "envelope": ""}
    look(owner, puppet, mail, lambda _, message: mq.MQ_setEnvelope(message, None, 0))
    assert mail.envelope is None


def test_fields_of_the_header(owner, puppet):
    mail = Mail(b"Subject: a\r\n b\r\n\r\na\0b\r\n")
    read = look(owner, puppet, mail, lambda _, message: [mq.MQ_header(message, name) for name in (b"subject", b"To", None)])
    assert read == [b"a b", None, None]
    assert look(owner, puppet, mail, lambda _, message: mq.MQ_mimeSize(message)) == len(mail.mime)
    before = mail.mime
    look(owner, puppet, mail, lambda _, message: mq.MQ_addHeader(message, b"X-Count", "\u00e9 1".encode()))
    assert mail.headers.get_decoded("X-Count") == "\u00e9 1" and mail.mime.endswith(before)


@pytest.mark.parametrize(
    ("name", "value"), [(b"", b"x"), (b"X Y", b"x"), (b"X:", b"x"), (b"X", b"a\r\nBcc: b"), (None, b"x"), (b"X", None)])
def test_fields_that_cannot_be(owner, puppet, caplog, name, value):
    mail = Mail(b"Subject: a\r\n\r\na\r\n")
    look(owner, puppet, mail, lambda _, message: mq.MQ_addHeader(message, name, value))
    assert mail.mime == b"Subject: a\r\n\r\na\r\n"
    assert (name is None or value is None) == (caplog.text == "")


def test_a_message_that_is_no_mail_has_no_header(owner, puppet):
    def play(_, message):
        mq.MQ_addHeader(message, b"X", b"x")
        return mq.MQ_header(message, b"X"), mq.MQ_mimeSize(message)

    assert look(owner, puppet, mqcore.Message(), play) == (None, 0)


def test_addresses_that_are_not_there(owner, puppet):
    assert look(owner, puppet, Mail(b""), lambda _, message: mq.MQ_envelope(message)) in (0, None)
    assert look(owner, puppet, Mail(b""), lambda _, message: mq.MQ_recipient(message)) in (0, None)
    bounce = Mail(b"", envelope="")
    assert look(owner, puppet, bounce, lambda _, message: bool(mq.MQ_envelope(message)))
    assert look(owner, puppet, bounce, lambda _, message: mq.MQ_email(mq.MQ_envelope(message))) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("MQ_setEnvelope", b"a@b\r\nRSET"), ("MQ_setRecipient", b"a\nb"), ("MQ_setJson", b"[1]"), ("MQ_setJson", b"{"),
     ("MQ_setJson", b"\xff"), ("MQ_setJson", b'{"key": NaN}'), ("MQ_setJson", b'{"key": -1e999}')],
)
def test_values_that_are_refused(owner, puppet, name, value, caplog):
    mail = Mail(b"", envelope="x", json={"recipient": "y"})
    before = dict(mail.json)
    look(owner, puppet, mail, lambda _, message: getattr(mq, name)(message, value, len(value)))
    assert mail.json == before
    (record,) = caplog.records
    assert record.name == "mqcore.plugins.20-puppet" and record.levelname == "ERROR" and record.exc_info


@pytest.mark.parametrize("size", [2**64 - 1, 2**63], ids=["-1", "more than there can be"])
@pytest.mark.parametrize("name", ["MQ_setEnvelope", "MQ_setRecipient", "MQ_setMime", "MQ_setJson", "MQ_send"])
def test_sizes_that_are_refused(owner, puppet, name, size, caplog):
    mail = Mail(b"mime", envelope="x", json={"recipient": "y"})
    before = dict(mail.json)
    result = look(owner, puppet, mail, lambda connection, message: getattr(mq, name)(
        connection if name == "MQ_send" else message, b"{}", size))
    assert (mail.json, mail.mime, result or 0) == (before, b"mime", 0)
    (record,) = caplog.records
    assert record.name == "mqcore.plugins.20-puppet" and record.levelname == "ERROR" and record.exc_info


def test_text_that_is_not_utf8_survives(owner, puppet):
    mail = Mail(b"")
    look(owner, puppet, mail, lambda _, message: mq.MQ_setEnvelope(message, b"\xff@example.com", 13))
    assert mail.envelope == "\udcff@example.com"
    assert look(owner, puppet, mail, lambda _, message: mq.MQ_email(mq.MQ_envelope(message))) == b"\xff@example.com"
    mail.envelope = "\ud800"
    assert look(owner, puppet, mail, lambda _, message: mq.MQ_email(mq.MQ_envelope(message))) == b"?"


def test_a_message_without_anything(owner, puppet):
    def play(connection, message):
        mq.MQ_setEnvelope(message, b"x", 1)
        mq.MQ_setRecipient(message, b"x", 1)
        mq.MQ_setMime(message, b"x", 1)
        mq.MQ_setLocal(message, True)
        mq.MQ_setJson(message, b"{}", 2)
        mq.MQ_setAuthenticated(connection, True)
        return [
            mq.MQ_envelope(message) or None, mq.MQ_recipient(message) or None, mq.MQ_mime(message), mq.MQ_json(message),
            mq.MQ_local(message), mq.MQ_fileDescriptor(connection), mq.MQ_send(connection, b"x", 1),
            mq.MQ_secure(connection), mq.MQ_authenticated(connection),
        ]

    for message in (mqcore.Message(), type("Mine", (mqcore.Message,), {})()):
        assert look(owner, puppet, message, play) == [None, None, None, None, False, -1, 0, False, False]


def test_strings_last_as_long_as_the_hold(owner, puppet):
    """Also when what they came from was changed meanwhile; and then they go."""
    texts, held = [], []

    def step(context, connection, message):
        mail.mime = b"first" * 10
        texts.append(mq_mime_address(message))
        mail.mime = b"second"
        texts.append(mq_mime_address(message))
        held.append(connection)
        return True

    mail = Mail(b"")
    puppet.step = step
    dispatcher = start(owner, [puppet])
    dispatcher.hook("mq_step").run(mail, done=owner.done)
    mail.mime = b""
    assert [ctypes.string_at(each) for each in texts] == [b"first" * 10, b"second"]
    mq.MQ_continue(held[0])
    owner.run_until(lambda: owner.finished)
    assert refused(dispatcher) == 0


def test_strings_go_with_their_step(owner, puppet):
    """Also where many steps are begun in one go."""
    mails = [Mail(b"", json={"number": number}) for number in range(100)]
    sizes = []

    def step(context, connection, message):
        mq.MQ_json(message)
        sizes.append(len([each for each in gc.get_objects() if type(each) is list and each and each[0] == '{"number": 0}']))

    puppet.step = step
    assert start(owner, [puppet]).hook("mq_step").run_many(mails) == [mqcore.CONTINUE] * 100
    assert sizes[0] == 1 and not any(sizes[1:])


def mq_mime_address(message):
    import mqcore.native._abi

    function = ctypes.CDLL(mqcore.native._abi.__file__)["MQ_mime"]
    function.restype, function.argtypes = ctypes.c_void_p, (ctypes.c_uint64,)
    return function(message)


def test_not_after_control_was_given_back(owner, puppet):
    def step(context, connection, message):
        mq.MQ_continue(connection)
        assert mq.MQ_mime(message) is None
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet])
    dispatcher.hook("mq_step").run(Mail(b"x"), done=owner.done)
    owner.run_until(lambda: owner.finished and refused(dispatcher) == 1)


def test_while_it_is_held(owner, puppet):
    mail = Mail(b"old")

    def change(message):
        mq.MQ_setMime(message, b"new", 3)
        mq.MQ_continue(message - 1)

    def step(context, connection, message):
        return puppet.timer(context, 0.001, change, message)

    puppet.step = step
    start(owner, [puppet]).hook("mq_step").run(mail, done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert mail.mime == b"new"


# Connections


def test_connection_data_is_of_each_plugin_and_message(owner, tmp_path):
    puppets = [Puppet(tmp_path / f"{name}.so") for name in ("10-a", "20-b")]
    seen = []
    for number, puppet in enumerate(puppets, 1):

        def step(context, connection, message, number=number):
            seen.append(mq.MQ_connectionData(connection) or 0)
            mq.MQ_setConnectionData(connection, seen[-1] + number)

        puppet.step = step
    hook = start(owner, puppets).hook("mq_step")
    first, second = mqcore.Message(), mqcore.Message()
    for message in (first, second, first, first):
        hook.run(message)
    assert seen == [0, 0, 0, 0, 1, 2, 2, 4]
    assert not puppets[0].errors and not puppets[1].errors


def test_python_cannot_forge_the_pointers_of_connection_data(owner, puppet):
    message = mqcore.Message()
    look(owner, puppet, message, lambda connection, _: mq.MQ_setConnectionData(connection, 0x1234))
    ((key, value),) = message.data.items()
    message.data[key] = 0x5678
    assert look(owner, puppet, message, lambda connection, _: mq.MQ_connectionData(connection) or 0) == 0
    message.data[key] = value
    assert look(owner, puppet, message, lambda connection, _: mq.MQ_connectionData(connection)) == 0x1234


class Session(mqcore.Message):
    """A host's own: what passes through the hooks of one SMTP connection."""

    def __init__(self, connection):
        self.connection = connection


class SessionAccessors(accessors.Accessors):
    def data(self, message):
        return message.connection.data

    def file_descriptor(self, message):
        return message.connection.fd

    def send(self, message, data):
        message.connection.sent += data
        return True

    def secure(self, message):
        return True

    def authenticated(self, message):
        return message.connection.user

    def set_authenticated(self, message, authenticated):
        message.connection.user = authenticated


accessors.register(Session, SessionAccessors())


def test_a_connection_of_ones_own(owner, puppet):
    connection = SimpleNamespace(data={}, fd=7, sent=b"", user=False)

    def play(connection, message):
        mq.MQ_setConnectionData(connection, 99)
        before = mq.MQ_authenticated(connection)
        mq.MQ_setAuthenticated(connection, True)
        return (
            mq.MQ_fileDescriptor(connection), mq.MQ_send(connection, b"220 \0hi", 7), mq.MQ_secure(connection), before,
            mq.MQ_authenticated(connection),
        )

    assert look(owner, puppet, Session(connection), play) == (7, 7, True, False, True)
    assert connection.sent == b"220 \0hi"
    subclass = type("Sub", (Session,), {})
    assert look(owner, puppet, subclass(connection), lambda connection, _: mq.MQ_connectionData(connection)) == 99


def test_a_mail_that_came_by_a_connection(owner, puppet):
    connection = Connection(1, "peer", tls=True)
    mails = [Mail(b"", connection=connection) for _ in range(2)]

    def play(handle, message):
        was = mq.MQ_authenticated(handle)
        mq.MQ_setAuthenticated(handle, True)
        mq.MQ_setConnectionData(handle, (mq.MQ_connectionData(handle) or 0) + 1)
        count, fd = mq.MQ_connectionData(handle), mq.MQ_fileDescriptor(handle)
        return mq.MQ_secure(handle), was, count, fd, mq.MQ_send(handle, b"x", 1)

    assert look(owner, puppet, mails[0], play) == (True, False, 1, -1, 0)
    assert look(owner, puppet, mails[1], play) == (True, True, 2, -1, 0)
    assert connection.authenticated


SERVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
MQ_EXPORT bool mq_smtp_in_connect(MQ_Context *context, MQ_Connection *connection)
{
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    (void)context;
    MQ_setConnectionData(connection, calloc(1, sizeof(int)));
    if (getpeername(MQ_fileDescriptor(connection), (struct sockaddr *)&peer, &size) == 0
        && peer.sin_addr.s_addr == htonl(INADDR_LOOPBACK))
        MQ_log(MQ_WARN, MQ_peer(connection));
    return false;
}
MQ_EXPORT bool mq_smtp_in_rcptto(MQ_Context *context, MQ_Connection *connection, MQ_Address *address)
{
    (void)context, (void)address;
    ++*(int *)MQ_connectionData(connection);
    return false;
}
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    char mime[200];
    (void)context;
    sprintf(mime, "To: %s of %d\r\n\r\n", MQ_email(MQ_recipient(message)), *(int *)MQ_connectionData(connection));
    MQ_setMime(message, mime, strlen(mime));
    return false;
}
MQ_EXPORT bool mq_smtp_in_close(MQ_Context *context, MQ_Connection *connection)
{
    (void)context;
    free(MQ_connectionData(connection));
    MQ_setConnectionData(connection, NULL);
    return false;
}
"""


def test_a_plugin_in_an_smtp_server(tmp_path):
    """Every stage in C: data of the connection, its socket, what is sent, and the mails."""
    compile_plugin(tmp_path / "plugins" / "10-server.so", SERVER)
    sinks = ("--to", f"maildir:{tmp_path}/out", "--failed", f"maildir:{tmp_path}/failed")
    with serve(*sinks, "--plugins", tmp_path / "plugins") as server:
        with server.client() as client:
            client.sendmail("from@example.com", ["one@example.com", "two@example.com"], "Subject: x\r\n\r\nhello\r\n")
        assert "127.0.0.1" in server.stop().stderr
    mails = sorted(mail.splitlines()[2] for mail in read_maildir(tmp_path / "out"))  # below Return-Path and Delivered-To
    assert mails == [b"To: one@example.com of 2", b"To: two@example.com of 2"]


class Broken(Session):
    pass


class BrokenAccessors(accessors.Accessors):
    def nonsense(self, message):
        return object()

    def raises(self, message, *values):
        raise RuntimeError("no")

    mime = file_descriptor = data = json = nonsense
    secure = send = envelope = raises


accessors.register(Broken, BrokenAccessors())


def test_accessors_that_raise_or_say_nonsense(owner, puppet, caplog):
    def play(connection, message):
        mq.MQ_setConnectionData(connection, 1)
        return [
            mq.MQ_mime(message), mq.MQ_fileDescriptor(connection), mq.MQ_connectionData(connection), mq.MQ_json(message),
            mq.MQ_send(connection, b"x", 1), mq.MQ_secure(connection), mq.MQ_envelope(message) or None,
        ]

    assert look(owner, puppet, Broken(None), play) == [None, -1, 0, None, 0, False, None]
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert "plugin 20-puppet: secure raised" in caplog.text


def test_an_accessor_that_ends_the_step(owner, puppet):
    class Ending(mqcore.Message):
        pass

    class EndingAccessors(accessors.Accessors):
        def mime(self, message):
            dispatcher.cancel(message)
            return b"too late"

    accessors.register(Ending, EndingAccessors())

    def ask(handle):
        assert mq.MQ_mime(handle) is None

    puppet.step = lambda context, connection, message: puppet.timer(context, 0, ask, message)
    dispatcher = start(owner, [puppet])
    dispatcher.hook("mq_step").run(Ending(), done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert owner.finished[0][1] is mqcore.FAIL
    owner.turn()


# Arguments of hooks


ARGUMENTS = """
#include <string.h>
static bool is(const char *text, const char *bytes, size_t size)
{
    return size == strlen(text) && memcmp(text, bytes, size) == 0;
}
MQ_EXPORT bool mq_smtp_in_connect(MQ_Context *context, MQ_Connection *connection)
{
    (void)context;
    MQ_complete(connection);
    return true;
}
MQ_EXPORT bool mq_smtp_in_authenticate(MQ_Context *context, MQ_Connection *connection, const char *login, size_t loginsize,
                                       const char *passwd, size_t passwdsize)
{
    (void)context;
    if (is("l\\xc3\\xb6gin", login, loginsize) && is("secret", passwd, passwdsize))
        MQ_complete(connection);
    return true;
}
MQ_EXPORT bool mq_smtp_in_rcptto(MQ_Context *context, MQ_Connection *connection, MQ_Address *address)
{
    (void)context;
    if (strcmp(MQ_email(address), "to@example.com") == 0)
        MQ_complete(connection);
    return true;
}
MQ_EXPORT bool mq_smtp_in_mailfrom(MQ_Context *context, MQ_Connection *connection, MQ_Address *address)
{
    (void)context;
    if (MQ_email(address) == NULL)
        MQ_complete(connection);
    return true;
}
MQ_EXPORT bool mq_smtp_in_data(MQ_Context *context, MQ_Connection *connection, const char *mime, size_t size)
{
    (void)context;
    if (size == 3 && memcmp(mime, "a\\0b", 4) == 0)
        MQ_complete(connection);
    return true;
}
"""


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("mq_smtp_in_connect", ()),
        ("mq_smtp_in_authenticate", ("lögin", b"secret")),
        ("mq_smtp_in_authenticate", ("lögin".encode(), "secret")),
        ("mq_smtp_in_rcptto", ("to@example.com",)),
        ("mq_smtp_in_rcptto", (b"to@example.com",)),
        ("mq_smtp_in_mailfrom", ("",)),
        ("mq_smtp_in_mailfrom", (None,)),
        ("mq_smtp_in_data", (b"a\0b",)),
    ],
)
def test_arguments(tmp_path, hook, arguments):

    async def main():
        with mqcore.Plugins(path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            return await dispatcher.hook(hook)(mqcore.Message(), *arguments)

    path = compile_plugin(tmp_path / "10-a.so", ARGUMENTS)
    assert uvloop.run(main()) is mqcore.COMPLETE


@pytest.mark.parametrize(("hook", "arguments"), [("mq_smtp_in_data", (1,)), ("mq_smtp_in_authenticate", ("\ud800", "x"))])
def test_arguments_that_c_cannot_have(tmp_path, hook, arguments):
    """The step fails, as if the hook had raised."""

    async def main():
        message = mqcore.Message()
        with mqcore.Plugins(path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            assert await dispatcher.hook(hook)(message, *arguments) is mqcore.FAIL
            assert sum(each.failures for each in dispatcher.stats().hooks) == 1
        return message.error

    path = compile_plugin(tmp_path / "10-a.so", ARGUMENTS)
    error = uvloop.run(main())
    assert isinstance(error, (TypeError, UnicodeEncodeError))
    assert f"plugin 10-a, hook {hook}" in error.__notes__
