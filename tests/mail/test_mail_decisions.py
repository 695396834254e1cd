"""Plugins that decide about a mail: `reject` and `discard`."""

from __future__ import annotations

import asyncio
import threading

import pytest
from mail_tools import counted, move, read_maildir, write_mbox, write_plugin
from sending_tools import NextServer
from smtp_tools import EHLO, LHLO, MAIL, RCPT, STAGES, TEXT, codes, plugin, run, serving

import mqcore
from mqcore.mail import Mail, SmtpSink

LOGIN = b"AUTH PLAIN AGEAYg==\r\n"
ENDS = ("read", "continued", "completed", "failed", "rejected", "discarded", "unfinished")


def counts_of(it):
    return {name: count for name in ENDS if (count := getattr(it.gateway.report.counts, name))}




def returning(verdict):
    def decide(context, message):
        message.reject(550, "5.7.1 no")
        return verdict

    return decide


def holding(name, where):
    """Takes the mail, decides later, and gives it back."""

    def decide(context, message):
        def go():
            message.reject(550, "5.7.1 no")
            getattr(context, name)(message)

        if where == "in a thread":
            threading.Thread(target=go).start()
        else:
            context.start_timer(0, go)
        return mqcore.HOLD

    return decide


async def waiting(context, message):
    await asyncio.sleep(0)
    message.reject(550, "5.7.1 no")
    return mqcore.RETRY


WAYS = {
    "returns False": returning(False),
    "returns COMPLETE": returning(mqcore.COMPLETE),
    "returns RETRY": returning(mqcore.RETRY),
    "continues later": holding("continue_", "on the loop"),
    "retries later": holding("retry", "on the loop"),
    "completes in a thread": holding("complete", "in a thread"),
    "retries in a thread": holding("retry", "in a thread"),
    "is a coroutine": waiting,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["connect", "authenticate", "mailfrom", "rcptto", "data", "message"])
@run
async def test_the_first_to_reject_decides(stage, way):
    """The next plugin, which would say something else, is not called."""
    later = []

    def first(context, message, *arguments):
        return WAYS[way](context, message)

    def second(context, message, *arguments):
        later.append(stage)
        message.reject(450, "4.0.0 later")

    plugins = {"10-first": plugin(**{stage: first}), "20-second": plugin(**{stage: second})}
    async with serving(plugins, auth_without_tls=True) as it:
        client = await it.connect()
        replies = {"connect": await client.reply(), "ehlo": await client.ask(EHLO)}
        commands = {"authenticate": LOGIN} if stage == "authenticate" else {}
        commands |= {"mailfrom": MAIL, "rcptto": RCPT, "data": b"DATA\r\n", "message": TEXT + b".\r\n"}
        for name, command in commands.items():
            client.send(command)
            replies[name] = await client.reply()
            if name == {"data": "message"}.get(stage, stage) or stage == "connect":
                break
    (refused,) = codes([replies[{"data": "message"}.get(stage, stage)]])
    assert (refused, later) == ("550 5.7.1", [])


@run
async def test_who_raises_fails_whatever_it_rejected():
    def step(context, message):
        message.reject(550, "5.7.1 no")
        raise ValueError

    async with serving({"10-step": plugin(message=step)}) as it:
        client = await it.opened()
        assert (await client.ask(TEXT + b".\r\n"))[:9] == "451 4.3.0"
    assert counts_of(it) == {"read": 1, "failed": 1}


def test_the_first_decision_stands():
    mail = Mail(b"x")
    mail.reject(550, "no")
    mail.reject(450, "later")
    mail.discard()
    assert (mail.rejection, mail.discarded) == ((550, "no"), False)
    with pytest.raises(ValueError, match="400 to 599"):
        mail.reject(250, "a wrong one is one all the same")
    mail = Mail(b"x")
    mail.discard()
    mail.reject(550, "no")
    assert (mail.rejection, mail.discarded) == (None, True)


def test_a_rejection_that_is_taken_back(owner):
    """Within the hook: then the others are called."""
    called = []

    class First:
        def mq_step(self, context, message):
            message.reject(550, "no")
            assert message.rejected_by == "10-first"
            message.rejection = None
            assert message.rejected_by is None

    dispatcher = owner.start({"10-first": First(), "20-second": lambda context, message: called.append(message)})
    mail = Mail(b"x")
    assert dispatcher.hook("mq_step").run(mail) is mqcore.CONTINUE
    assert (called, mail.rejection) == ([mail], None)


def test_a_decision_that_is_changed_between_steps(owner):
    """That is no matter of the next one."""
    called = []
    hooks = {name: lambda context, message, name=name: called.append(name) for name in ("10-first", "20-second")}
    hook = owner.start(hooks).hook("mq_step")
    mail = Mail(b"x")
    mail.discard()
    mail.rejection = None
    assert hook.run(mail) is mqcore.CONTINUE
    assert called == ["10-first", "20-second"]


# Discarding


@pytest.mark.parametrize("stage", ["connect", *STAGES[1:]])
@run
async def test_what_is_discarded(stage):
    later = []
    plugins = {
        "10-first": plugin(**{stage: lambda context, message, *arguments: message.discard()}),
        "20-second": plugin(**{stage: lambda context, message, *arguments: later.append(stage)}),
    }
    async with serving(plugins) as it:
        client = await it.opened()
        assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]
        await it.until(lambda: not it.gateway.in_flight)
    assert (counts_of(it), later, it.sink.mails) == ({"read": 1, "discarded": 1}, [], [])


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("stage", ["rcptto", "message"])
@pytest.mark.parametrize("other", ["taken", "rejected", "failed"])
@run
async def test_one_of_two_recipients_is_discarded(stage, lmtp, other):
    def step(context, message, *arguments):
        if message.recipient.startswith("drop"):
            message.discard()

    def rest(context, message):
        if not message.recipient.startswith("drop"):
            if other == "rejected":
                message.reject(550, "5.1.1 no")
            if other == "failed":
                raise ValueError

    each = {"taken": ("250 2.6.0", "continued"), "rejected": ("550 5.1.1", "rejected"), "failed": ("451 4.3.0", "failed")}
    reply, count = each[other]
    async with serving({"10-step": plugin(**{stage: step}), "20-rest": plugin(message=rest)}, lmtp=lmtp) as it:
        client = await it.greeted()
        lines = b"RCPT TO:<drop@example.org>\r\nRCPT TO:<b@example.org>\r\nRCPT TO:<drop@example.org>\r\nDATA\r\n"
        assert (await client.asks(MAIL + lines, 5))[-1] == "354"
        replies = await client.asks(TEXT + b".\r\n", 3 if lmtp else 1)
        await it.until(lambda: not it.gateway.in_flight)
    if lmtp:
        assert (replies, counts_of(it)) == (["250 2.6.0", reply, "250 2.6.0"], {"read": 2, count: 1, "discarded": 1})
        return
    assert replies == [reply]
    # A client that has to come again sends all of it again.
    gone = {"discarded": 1} if other == "taken" or stage == "rcptto" else {"unfinished": 1}
    assert counts_of(it) == {"read": 2, count: 1} | gone


@run
async def test_the_next_transaction_is_not_discarded():
    def step(context, message, address):
        if address == "a@example.org":
            message.discard()

    async with serving({"10-step": plugin(mailfrom=step)}) as it:
        client = await it.opened()
        assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]
        lines = b"MAIL FROM:<c@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
        assert await client.asks(lines + TEXT + b".\r\n", 4) == ["250 2.1.0", "250 2.1.5", "354", "250 2.6.0"]
    assert counts_of(it) == {"read": 2, "discarded": 1, "continued": 1}


@run
async def test_a_plugin_that_discards_what_goes_out():
    class Out:
        def mq_smtp_out_data(self, context, message):
            message.discard()

    server = NextServer()
    await server.start()
    try:
        sink = SmtpSink(f"//127.0.0.1:{server.port}")
        async with serving({"10-out": Out()}, sink=sink, one_recipient=True) as it:
            client = await it.opened()
            assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]
            await it.until(lambda: not it.gateway.in_flight)
    finally:
        await server.stop()
    assert (counts_of(it), server.mails) == ({"read": 1, "discarded": 1}, [])


def test_mails_from_a_file(tmp_path):
    """They count as done with, and are discarded again by the next run."""
    write_plugin(tmp_path / "plugins", "10-drop", """
        def mq_smtp_in_message(context, message):
            if message.envelope == "sender0@example.org":
                message.discard()
    """)
    box = write_mbox(tmp_path / "box", 8)
    for present in (0, 6):
        figures = move(f"mbox:{box}", f"maildir:{tmp_path / 'out'}", "--plugins", tmp_path / "plugins")
        expected = {"discarded": 2} | ({"present": present} if present else {"continued": 6})
        assert counted(figures) == expected
    assert len(read_maildir(tmp_path / "out")) == 6


@run
async def test_lmtp_with_all_discarded():
    async with serving({"10-drop": plugin(rcptto=lambda context, message, address: message.discard())}, lmtp=True) as it:
        client = await it.connect()
        await client.reply()
        await client.ask(LHLO)
        lines = MAIL + b"RCPT TO:<b@example.org>\r\nRCPT TO:<c@example.org>\r\nDATA\r\n"
        assert (await client.asks(lines, 4))[-1] == "354"
        assert await client.asks(TEXT + b".\r\n", 2) == ["250 2.6.0"] * 2
    assert counts_of(it) == {"read": 2, "discarded": 2}
