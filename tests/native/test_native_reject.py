"""MQ_reject, MQ_fail, MQ_config, MQ_helo and MQ_peer; and MQ_send, which is refused while a reply is due."""

from __future__ import annotations

import smtplib
import threading

import pytest
from cli_tools import serve
from mail_tools import read_maildir
from native_tools import Puppet, compile_plugin, mq, refused, start
from test_native_mail import Session, look

import mqcore
from mqcore.mail import Connection, Mail
from mqcore.native import accessors


@pytest.fixture
def after(tmp_path):
    """A native plugin behind it, which counts its calls."""
    made = Puppet(tmp_path / "30-after.so")
    made.calls = []
    made.step = lambda *handles: made.calls.append(handles)
    return made


def steps(owner, dispatcher, message, count=1):
    """The outcomes of steps of the message, one after the other: (outcome, text of the error)."""
    outcomes = []
    for _ in range(count):
        outcome = dispatcher.hook("mq_step").run(message, done=owner.done)
        if outcome is None:
            owner.run_until(lambda: owner.finished)
            outcome = owner.finished.pop()[1]
        outcomes.append((outcome, str(message.error) if outcome is mqcore.FAIL else None))
    return outcomes


# MQ_fail


@pytest.mark.parametrize("held", [False, True, "in a thread"], ids=str)
@pytest.mark.parametrize("returned", [True, False])
def test_fail(owner, puppet, after, held, returned):
    if held and not returned:
        return

    def step(context, connection, message):
        if held == "in a thread":
            threads.append(threading.Thread(target=mq.MQ_fail, args=(connection, "wäre".encode())))
            threads[-1].start()
        elif held:
            puppet.timer(context, 0.001, lambda connection: mq.MQ_fail(connection, "wäre".encode()), connection)
        else:
            mq.MQ_fail(connection, "wäre".encode())
        return returned

    threads = []
    puppet.step = step
    dispatcher = start(owner, [puppet, after])
    assert steps(owner, dispatcher, mqcore.Message(), 3) == [(mqcore.FAIL, "wäre")] * 3
    for thread in threads:
        thread.join()
    assert after.calls == [] and refused(dispatcher) == 0
    assert sum(each.failures for each in dispatcher.stats().hooks) == 3
    puppet.step = lambda *_: False
    assert steps(owner, dispatcher, mqcore.Message()) == [(mqcore.CONTINUE, None)]


def test_many_fail_in_one_go(owner, puppet):
    """With run_many, where the hooks are called without the GIL."""

    def step(context, connection, message):
        calls.append(0)
        if len(calls) % 3 == 0:
            mq.MQ_fail(connection, b"the third %d" % len(calls))
        elif len(calls) % 5 == 0:
            mq.MQ_reject(connection, 550, b"the fifth %d" % len(calls))
        return False

    calls = []
    puppet.step = step
    messages = [mqcore.Message() for _ in range(100)]
    outcomes = start(owner, [puppet]).hook("mq_step").run_many(messages)
    for number, (message, outcome) in enumerate(zip(messages, outcomes, strict=True), 1):
        failed = number % 3 == 0 or number % 5 == 0
        assert outcome is (mqcore.FAIL if failed else mqcore.CONTINUE)
        text = f"the third {number}" if number % 3 == 0 else f"550 the fifth {number}" if failed else "None"
        assert str(message.error) == text and (not failed or type(message.error) is mqcore.MqError)


@pytest.mark.parametrize("text", [b"", None, b"\xff not utf-8", b"x" * 100_000])
def test_texts_of_failures(owner, puppet, text):
    puppet.step = lambda context, connection, message: mq.MQ_fail(connection, text)
    expected = "failed by a native plugin" if text is None else text.decode(errors="replace")
    assert steps(owner, start(owner, [puppet]), mqcore.Message()) == [(mqcore.FAIL, expected)]


@pytest.mark.parametrize("first", ["fail", "continue"])
def test_failed_and_given_back(owner, puppet, first):
    """The first one counts."""

    def step(context, connection, message):
        if first == "continue":
            mq.MQ_continue(connection)
        mq.MQ_fail(connection, b"no")
        mq.MQ_continue(connection)
        mq.MQ_fail(connection, b"twice")
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet])
    assert steps(owner, dispatcher, mqcore.Message()) == [
        (mqcore.FAIL, "no") if first == "fail" else (mqcore.CONTINUE, None)]
    owner.run_until(lambda: refused(dispatcher) == (2 if first == "fail" else 3))


def test_failed_by_a_native_callback_and_cancelled_before_the_tick(owner, puppet):
    def step(context, connection, message):
        connections.append(connection)
        return True

    connections = []
    puppet.step = step
    dispatcher = start(owner, [puppet])
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    mq.MQ_fail(connections[0], b"no")
    dispatcher.cancel(message)
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, mqcore.FAIL)] and isinstance(message.error, mqcore.Cancelled)
    owner.turn()


def test_threads_that_fail_and_continue_at_once(owner, puppet):
    """One of them is in time, and its text is the error's."""
    connections = []
    puppet.step = lambda context, connection, message: connections.append(connection) or True
    dispatcher = start(owner, [puppet])
    for number in range(200):
        barrier = threading.Barrier(3)

        def give(function, *arguments, barrier=barrier):
            barrier.wait()
            function(connections[-1], *arguments)

        message = mqcore.Message()
        dispatcher.hook("mq_step").run(message, done=owner.done)
        ways = [(mq.MQ_fail, b"one %d" % number), (mq.MQ_fail, b"two %d" % number), (mq.MQ_continue,)]
        threads = [threading.Thread(target=give, args=way) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owner.run_until(lambda: owner.finished)
        outcome = owner.finished.pop()[1]
        assert outcome is mqcore.CONTINUE or str(message.error) in (f"one {number}", f"two {number}")
    owner.turn()


# MQ_reject


WAYS = {
    "false": lambda puppet, context, connection: False,
    "early": lambda puppet, context, connection: mq.MQ_continue(connection) or True,
    "early complete": lambda puppet, context, connection: mq.MQ_complete(connection) or True,
    "early retry": lambda puppet, context, connection: mq.MQ_retry(connection) or True,
    "held": lambda puppet, context, connection: puppet.timer(context, 0, mq.MQ_continue, connection),
    "held, complete": lambda puppet, context, connection: puppet.timer(context, 0, mq.MQ_complete, connection),
    "held, retry": lambda puppet, context, connection: puppet.timer(context, 0, mq.MQ_retry, connection),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_message_that_cannot_be_rejected_fails(owner, puppet, after, way):
    """When control goes back, however it does."""

    def step(context, connection, message):
        mq.MQ_reject(connection, 550, b"5.7.1 no")
        return bool(WAYS[way](puppet, context, connection))

    puppet.step = step
    dispatcher = start(owner, [puppet, after])
    assert steps(owner, dispatcher, mqcore.Message(), 3) == [(mqcore.FAIL, "550 5.7.1 no")] * 3
    assert after.calls == [] and refused(dispatcher) == 0


def test_rejected_while_it_is_held(owner, puppet, after):
    def later(connection):
        mq.MQ_reject(connection, 451, None)
        assert mq.MQ_mime(connection + 1) in (None, b"x")  # it still has control
        mq.MQ_continue(connection)

    puppet.step = lambda context, connection, message: bool(puppet.timer(context, 0, later, connection))
    dispatcher = start(owner, [puppet, after])
    assert steps(owner, dispatcher, mqcore.Message()) == [(mqcore.FAIL, "451 refused")]
    mail = Mail(b"x")
    ((outcome, _),) = steps(owner, dispatcher, mail)
    assert outcome is not mqcore.FAIL and mail.rejection == (451, "refused")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("behind", ["native", "python"])
def test_a_mail_is_rejected(owner, puppet, after, way, behind):
    """That decides, when control goes back, however it does: nobody else is called, and what is said later changes nothing."""

    def step(context, connection, message):
        mq.MQ_reject(connection, 550, "wäre nötig".encode())
        mq.MQ_reject(connection, 450, b"later")
        return bool(WAYS[way](puppet, context, connection))

    puppet.step = step
    if behind == "native":
        dispatcher = start(owner, [puppet, after])
    else:
        dispatcher = start(owner, [puppet], {"30-after": lambda context, message: after.calls.append(message)})
    for mail in (Mail(b"x"), Mail(b"y")):
        assert steps(owner, dispatcher, mail) == [(mqcore.COMPLETE, None)]
        assert mail.rejection == (550, "wäre nötig") and mail.rejected_by == "20-puppet"
    assert after.calls == [] and refused(dispatcher) == 0


def test_mails_of_which_some_are_rejected(owner, puppet, after):
    """With run_many, where the hooks are called without the GIL."""

    def step(context, connection, message):
        calls.append(0)
        if len(calls) % 3 == 0:
            mq.MQ_reject(connection, 550, b"no")
        return False

    calls = []
    puppet.step = step
    mails = [Mail(b"x") for _ in range(100)]
    outcomes = start(owner, [puppet, after]).hook("mq_step").run_many(mails)
    assert outcomes == [mqcore.COMPLETE if mail.rejection else mqcore.CONTINUE for mail in mails]
    assert sum(mail.rejection is not None for mail in mails) == 33 and len(after.calls) == 67


@pytest.mark.parametrize(("code", "text"), [(250, b"fine"), (-1, b"x"), (550, b"two\r\nlines")])
def test_a_mail_that_is_rejected_in_a_wrong_way_fails(owner, puppet, code, text, caplog):
    """It must not pass."""
    puppet.step = lambda context, connection, message: mq.MQ_reject(connection, code, text)
    dispatcher = start(owner, [puppet])
    mail = Mail(b"x")
    assert steps(owner, dispatcher, mail) == [(mqcore.FAIL, f"{code} {text.decode()}")]
    assert mail.rejection is None
    assert "plugin 20-puppet: reject raised" in caplog.text


def test_reject_by_accessors_of_ones_own(owner, puppet):
    class Kind(mqcore.Message):
        refusal = None

    class KindAccessors(accessors.Accessors):
        def reject(self, message, code, text):
            message.refusal = code, text
            return code != 554

    accessors.register(Kind, KindAccessors())
    puppet.step = lambda context, connection, message: mq.MQ_reject(connection, 550, b"no")
    dispatcher = start(owner, [puppet])
    message = Kind()
    assert steps(owner, dispatcher, message) == [(mqcore.CONTINUE, None)] and message.refusal == (550, "no")
    puppet.step = lambda context, connection, message: mq.MQ_reject(connection, 554, b"not so")
    assert steps(owner, dispatcher, message) == [(mqcore.FAIL, "554 not so")]


def test_rejected_when_it_has_no_control(owner, puppet):
    seen = []

    def step(context, connection, message):
        seen.append(connection)
        mq.MQ_continue(connection)
        mq.MQ_reject(connection, 550, b"too late")
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet])
    assert steps(owner, dispatcher, Mail(b"x")) == [(mqcore.CONTINUE, None)]
    mq.MQ_reject(seen[0], 550, b"outside of all calls")
    owner.run_until(lambda: refused(dispatcher) == 1)


# MQ_config, MQ_helo, MQ_peer


def test_config(owner, puppet):
    config = {"text": "wäre", "number": 30, "real": 2.5, "flag": True, "list": [1, "ä"], "table": {"a": False}, "none": ""}
    keys = [*config, "absent", "\xff"]

    def ask(context):
        asked.append([mq.MQ_config(context, key.encode("latin-1" if key == "\xff" else "utf-8")) for key in keys])

    asked = []
    puppet.begin = puppet.end = ask
    puppet.step = lambda context, connection, message: ask(context)
    plugins = owner.plugins({}, config={"20-puppet": config})
    plugins.load(puppet.path)
    dispatcher = owner.dispatcher(plugins)
    dispatcher.hook("mq_step").run(mqcore.Message())
    dispatcher.hook("mq_step").run(mqcore.Message())
    dispatcher.close()
    wanted = ["wäre", "30", "2.5", "true", '[1, "ä"]', '{"a": false}', ""]
    assert asked == [[*(each.encode() for each in wanted), None, None]] * 4
    assert mq.MQ_config(puppet.context, b"text") is None


def test_helo_and_peer(owner, puppet):
    def ask(connection, message):
        return mq.MQ_helo(connection), mq.MQ_peer(connection)

    assert look(owner, puppet, mqcore.Message(), ask) == (None, None)
    assert look(owner, puppet, Mail(b""), ask) == (None, None)
    assert look(owner, puppet, Mail(b"", connection=Connection(1, "192.0.2.7")), ask) == (None, b"192.0.2.7")
    assert look(owner, puppet, Mail(b"", connection=Connection(1, "::1", "client.example")), ask) == (b"client.example", b"::1")


# MQ_send


def test_send_while_a_reply_is_due_is_refused(owner, puppet, caplog):
    class Asks(Session):
        due = True

    class AsksAccessors(type(accessors.accessors_of(Session))):
        def reply_due(self, message):
            return message.due

    accessors.register(Asks, AsksAccessors())
    class Sent:
        sent = b""

    message = Asks(Sent())
    assert look(owner, puppet, message, lambda connection, _: mq.MQ_send(connection, b"x", 1)) == 0
    owner.run_until(lambda: caplog.records)
    assert "plugin 20-puppet called MQ_send while the other side waits for a reply" in caplog.text
    message.due = False
    assert look(owner, puppet, message, lambda connection, _: mq.MQ_send(connection, b"x", 1)) == 1
    assert message.connection.sent == b"x"


SERVER = r"""
#include <stdio.h>
#include <string.h>
MQ_EXPORT bool mq_smtp_in_connect(MQ_Context *context, MQ_Connection *connection)
{
    (void)context;
    if (MQ_send(connection, "250 fooled\r\n", 12) != 0)
        MQ_fail(connection, "sent");
    return false;
}
MQ_EXPORT bool mq_smtp_in_mailfrom(MQ_Context *context, MQ_Connection *connection, MQ_Address *envelope)
{
    const char *refused = MQ_config(context, "refused");
    const char *email = MQ_email(envelope);
    if (refused != NULL && email != NULL && strcmp(email, refused) == 0)
        MQ_reject(connection, 550, "5.7.1 not you");
    else if (email == NULL)
        MQ_fail(connection, "no bounces here");
    return false;
}
static void later(void *connection)
{
    MQ_reject(connection, 450, "come again");
    MQ_continue(connection);
}
MQ_EXPORT bool mq_smtp_in_rcptto(MQ_Context *context, MQ_Connection *connection, MQ_Address *recipient)
{
    if (strncmp(MQ_email(recipient), "later@", 6) != 0)
        return false;
    MQ_startTimer(context, 0.01f, later, connection);
    return true;
}
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    char mime[200];
    (void)context;
    snprintf(mime, sizeof mime, "X: %s %s\r\n\r\n", MQ_helo(connection), MQ_peer(connection));
    MQ_setMime(message, mime, strlen(mime));
    return false;
}
"""


def test_in_an_smtp_server(tmp_path):
    compile_plugin(tmp_path / "plugins" / "10-server.so", SERVER)
    config = tmp_path / "mqcore.toml"
    config.write_text('[plugins.10-server]\nrefused = "spammer@example.com"\n')
    sinks = ("--to", f"maildir:{tmp_path}/out", "--config", config)
    with serve(*sinks, "--plugins", tmp_path / "plugins") as server:
        with server.client() as client:
            client.ehlo("client.example")
            assert client.mail("spammer@example.com") == (550, b"5.7.1 not you")
            assert client.mail("")[0] == 451
            assert client.mail("a@example.com")[0] == 250
            assert client.rcpt("later@example.com") == (450, b"4.7.1 come again")
            client.rset()
            client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nhello\r\n")
        with pytest.raises(smtplib.SMTPSenderRefused), server.client() as client:
            client.sendmail("spammer@example.com", ["b@example.com"], "Subject: x\r\n\r\nhello\r\n")
        errors = server.stop().stderr
    (mail,) = read_maildir(tmp_path / "out")
    assert b"X: client.example 127.0.0.1\r\n" in mail
    assert "plugin 10-server called MQ_send while the other side waits for a reply" in errors
