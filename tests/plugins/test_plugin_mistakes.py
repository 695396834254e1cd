"""The usual mistakes of authors of plugins, and what they are told: what is wrong, where, and what to do."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import textwrap
import time

import pytest
import uvloop
from mail_tools import EXAMPLES

import mqcore
from mqcore.mail import Connection, Mail
from mqcore.plugins._advice import advice_for
from mqcore.plugins._tasks import names_plugins

HOOK = "def mq_smtp_in_message(context, message):"
MIME = b"Subject: hello\n\nhello\n"

# By name: the plugin, by what means its author is told, the line, and words that are in what is said.
LOADED = {
    "hook misspelt": ("def mq_smtp_in_rcpt(context, message, address): pass", 1, ["mq_smtp_in_rcptto", "correct the name"]),
    "argument forgotten": (
        "def mq_smtp_in_rcptto(context, message): pass",
        1,
        ["define it as mq_smtp_in_rcptto(context, message, address)"],
    ),
    "argument too many": (
        "def mq_smtp_in_message(context, message, mime): pass",
        1,
        ["define it as mq_smtp_in_message(context, message)"],
    ),
    "self in a module": (
        "def mq_smtp_in_message(self, context, message): pass",
        1,
        ["define it as mq_smtp_in_message(context, message)"],
    ),
    "hook is no function": (
        "mq_smtp_in_message = 'x'",
        None,
        ["of type str, which cannot be called", "define it as a function"],
    ),
    "hook yields": (HOOK + " yield", 1, ["is a generator", "return a verdict instead"]),
    "async initialize": ("async def mq_initialize(): pass", 1, ["only hooks may be that", "define it without async"]),
    "initialize takes the context": ("def mq_initialize(context): pass", 1, ["define it as mq_initialize()"]),
    "initialize raises": (
        "def mq_initialize():\n    raise OSError('no database')",
        2,
        ["mq_initialize() raised OSError: no database", "correct that"],
    ),
    "module is not there": ("import rediss_of_mine", 1, ["importing it raised ModuleNotFoundError", "rediss_of_mine"]),
    "syntax": ("def mq_smtp_in_message(context, message)\n    pass", 1, ["syntax error", "expected ':'"]),
    "sys.exit": ("import sys\nsys.exit('no key')", 2, ["called sys.exit('no key')", "raises an error that says why"]),
    "version of another API": ("mq_version = '1'", None, ["mq_version is '1'", "version 1"]),
    "continue without its underscore": (
        HOOK + "\n    context.continue(message)",
        2,
        ["syntax error", "`continue` is a word of Python's own, so the method is context.continue_"],
    ),
    "plugin's file is imported": ("import sys\nfrom . import keys", 2, ["importing it raised ImportError"]),
}

CHECKED = {
    "comparison": (
        HOOK + "\n    return b'the' in message.mime",
        2,
        ["b'the' in message.mime", "holds the message", "COMPLETE if"],
    ),
    "negation": (HOOK + "\n    return not message.envelope", 2, ["not message.envelope", "hold_timeout"]),
    "bool": (HOOK + "\n    return bool(message.envelope)", 2, ["bool(message.envelope)", "COMPLETE if"]),
    "any": (HOOK + "\n    return any(message.recipients)", 2, ["any(message.recipients)"]),
    "startswith": (HOOK + "\n    return message.mime.startswith(b'From')", 2, ["startswith"]),
    "comparison, or": (HOOK + "\n    return message.size > 5 or None", 2, ["message.size > 5"]),
    "comparison in a coroutine": ("async " + HOOK + "\n    return message.size > 5", 2, ["message.size > 5"]),
    "comparison in a variable": (
        HOOK + "\n    blocked = message.size > 5\n    return blocked",
        3,
        ["returns blocked, which is True or False", "COMPLETE if"],
    ),
    "flag": (
        HOOK + "\n    found = False\n    for each in message.recipients:\n        found = True\n    return found",
        5,
        ["returns found, which is True or False"],
    ),
    "comparison in a helper": (
        "def blocks(a):\n    return a in ('x', 'y')\n" + HOOK + "\n    return blocks(message.envelope)",
        4,
        ["returns blocks(message.envelope), which is True or False"],
    ),
    "comparison in a helper that gets the message": (
        "def big(m):\n    if m.size > 5:\n        return True\n    return False\n" + HOOK + "\n    return big(message)",
        6,
        ["returns big(message), which is True or False"],
    ),
    "comparison in a coroutine of a helper": (
        f"async def big(m):\n    return m.size > 5\nasync {HOOK}\n    return await big(message)",
        4,
        ["returns await big(message), which is True or False"],
    ),
    "True by accident": (HOOK + "\n    message.headers.add('X', 'y')\n    return True", 3, ["give it back", "return False"]),
    "HOLD and only logs": (
        "import mqcore\n" + HOOK + "\n    context.log.info('%r', message)\n    return mqcore.HOLD",
        4,
        ["return False"],
    ),
    "HOLD forgotten": (
        HOOK + "\n    context.start_timer(1, context.continue_, message)",
        2,
        ["never returns HOLD", "return mqcore.HOLD"],
    ),
    "give-back that is called": (
        HOOK + "\n    context.start_timer(1, context.continue_(message))\n    return True",
        2,
        ["calls context.continue_(message) at once", "hand over the function", ": context.continue_, message"],
    ),
    "give-back of a hold that is called": (
        HOOK + "\n    hold = context.hold(message)\n    hold.start_timer(\n        1, hold.fail('no'))\n    return hold",
        4,
        ["calls hold.fail('no') at once", ": hold.fail, 'no'"],
    ),
    "callback that is called": (
        f"def later(context, message):\n    context.continue_(message)\n{HOOK}\n"
        "    context.start_timer(1, later(context, message=message))\n    return True",
        4,
        ["at once", ": functools.partial(later, context, message=message)"],
    ),
    "callback of asyncio that is called": (
        f"import asyncio\n{HOOK}\n    loop = asyncio.get_running_loop()\n"
        "    loop.call_later(1, context.complete(message))\n    return True",
        4,
        ["calls context.complete(message) at once", ": context.complete, message"],
    ),
    "HOLD in a coroutine that hands it to nobody": (
        f"import asyncio\nimport mqcore\nasync {HOOK}\n    await asyncio.sleep(1)\n    return mqcore.HOLD",
        5,
        ["returns mqcore.HOLD", "hands it to nothing"],
    ),
    "HOLD forgotten in a coroutine": (
        f"async {HOOK}\n    context.start_timer(1, context.continue_, message)",
        2,
        ["never returns HOLD", "return mqcore.HOLD"],
    ),
    "HOLD forgotten with asyncio": (
        f"import asyncio\n{HOOK}\n    asyncio.get_running_loop().call_later(1, context.continue_, message)",
        3,
        ["never returns HOLD"],
    ),
    "Hold forgotten": (
        HOOK + "\n    hold = context.hold(message)\n    hold.start_timer(1, hold.continue_)\n    return False",
        2,
        ["or the Hold"],
    ),
    "returns a text": (HOOK + "\n    return 'reject'", 2, ["'reject', which is no verdict", "COMPLETE"]),
    "returns a number": (HOOK + "\n    return 0", 2, ["0, which is no verdict"]),
    "returns a reply": (HOOK + "\n    return 550, 'no'", 2, ["message.reject(550, text)"]),
    "returns FAIL": (
        "import mqcore\n" + HOOK + "\n    return mqcore.FAIL",
        3,
        ["FAIL, which is no verdict", "raise an exception"],
    ),
    "milliseconds": (
        HOOK + "\n    context.start_timer(5000, context.continue_, message)\n    return True",
        2,
        ["takes seconds", "5000"],
    ),
    "seconds as a text": (
        HOOK + "\n    context.start_timer('1', context.continue_, message)\n    return True",
        2,
        ["a number, and not '1'"],
    ),
    "sleep": ("import time\n" + HOOK + "\n    time.sleep(1)", 3, ["calls time.sleep", "no other mail moves", "start_timer"]),
    "sleep in a coroutine": (
        "from time import sleep\nasync " + HOOK + "\n    sleep(1)",
        3,
        ["time.sleep", "await asyncio.sleep"],
    ),
    "sleep in a helper": (
        "import time as t\ndef ask():\n    t.sleep(1)\n" + HOOK + "\n    ask()",
        3,
        ["ask, for mq_smtp_in_message, calls time.sleep"],
    ),
    "sleep in a callback": (
        f"import time\ndef later(c, m):\n    time.sleep(1)\n{HOOK}\n"
        "    context.start_timer(1, later, context, message)\n    return True",
        3,
        ["later, for mq_smtp_in_message, calls time.sleep"],
    ),
    "requests": (
        HOOK + "\n    import requests\n    requests.get('http://x')",
        3,
        ["calls requests.get", "httpx.AsyncClient", "to_thread"],
    ),
    "urlopen": ("from urllib.request import urlopen\n" + HOOK + "\n    urlopen('http://x')", 3, ["urllib.request.urlopen"]),
    "smtplib": ("import smtplib\n" + HOOK + "\n    smtplib.SMTP('x')", 3, ["calls smtplib.SMTP", "to_thread"]),
    "subprocess": ("import subprocess\n" + HOOK + "\n    subprocess.run(['x'])", 3, ["create_subprocess_exec"]),
    "connection": (
        "import socket\n" + HOOK + "\n    socket.create_connection(('x', 1))",
        3,
        ["without a timeout", "asyncio.open_connection"],
    ),
    "name server": ("import socket\n" + HOOK + "\n    socket.gethostbyname('x')", 3, ["getaddrinfo"]),
    "coroutine as a callback": (
        f"async def later(message): pass\n{HOOK}\n    context.start_timer(1, later, message)\n    return True",
        3,
        ["later is a coroutine function", "without async"],
    ),
    "await forgotten": (f"async def ask(): pass\nasync {HOOK}\n    ask()", 3, ["calls ask", "without `await`"]),
    "await forgotten in a condition": (
        f"async def look(a): pass\nasync {HOOK}\n    if look(message.envelope):\n        message.reject(550, 'no')",
        3,
        ["calls look", "write `await look(message.envelope)`"],
    ),
    "await forgotten in a plain hook": (
        f"async def look(a): pass\n{HOOK}\n    if message.size > 5 and not look(message.envelope):\n        return None",
        3,
        ["write `await look(message.envelope)`, and make mq_smtp_in_message async"],
    ),
    "await forgotten, assigned": (
        f"async def look(a): pass\nasync {HOOK}\n    blocked = look(message.envelope)\n    if blocked:\n        return None",
        3,
        ["calls look", "without `await`"],
    ),
    "await forgotten, compared": (
        f"async def look(a): pass\nasync {HOOK}\n    if (found := look('x')) == 5:\n        context.log.info('%s', found)",
        3,
        ["calls look", "without `await`"],
    ),
    "await forgotten, used": (
        f"async def look(a): pass\nasync {HOOK}\n    message.headers.add('X', look('x'))",
        3,
        ["calls look", "without `await`"],
    ),
    "await forgotten, set": (
        f"async def look(a): pass\nasync {HOOK}\n    message.envelope = look('x') if message.size else None",
        3,
        ["calls look", "without `await`"],
    ),
    "await forgotten in any": (
        f"async def look(a): pass\nasync {HOOK}\n    if any(look(each) for each in message.recipients): pass",
        3,
        ["calls look", "without `await`"],
    ),
    "await forgotten, returned by a coroutine": (
        f"async def look(a): pass\nasync {HOOK}\n    return look('x')",
        3,
        ["calls look", "without `await`"],
    ),
    "await forgotten for asyncio": (f"import asyncio\nasync {HOOK}\n    asyncio.sleep(1)", 3, ["calls asyncio.sleep"]),
    "await forgotten in a helper": (
        f"async def look(): pass\ndef ask():\n    return 1 if look() else 2\n{HOOK}\n    ask()",
        3,
        ["ask, for mq_smtp_in_message, calls look", "and make ask async"],
    ),
    "loop in a loop": (
        f"import asyncio\nasync def look(): pass\n{HOOK}\n    if asyncio.run(look()): pass",
        4,
        ["calls asyncio.run", "RuntimeError", "`async def mq_smtp_in_message`"],
    ),
    "loop in a loop, by hand": (
        f"import asyncio\n{HOOK}\n    loop = asyncio.new_event_loop()\n    loop.run_until_complete(asyncio.sleep(1))",
        4,
        ["calls loop.run_until_complete", "RuntimeError"],
    ),
    "attribute misspelt": (
        HOOK + "\n    message.recipent = 'b@example.org'",
        2,
        ["message.recipent", "did you mean recipient?"],
    ),
    "attribute of another library": (
        HOOK + "\n    return message.sender and None",
        2,
        ["message.sender", "did you mean envelope?"],
    ),
    "method misspelt": (HOOK + "\n    message.rejct(550, 'no')", 2, ["did you mean reject?"]),
    "give-back of the message": (HOOK + "\n    message.continue_()", 2, ["did you mean context.continue_(message)?"]),
    "failure of the message": (HOOK + "\n    message.fail('no')", 2, ["did you mean context.fail(message, error)?"]),
    "rejection of the context": (HOOK + "\n    context.reject(550, 'no')", 2, ["did you mean message.reject?"]),
    "logger is called": (HOOK + "\n    context.log('x')", 2, ["calls a logger", "write context.log.info(...)"]),
    "config is called": (HOOK + "\n    context.config('x')", 2, ["write context.config[key], or context.config.get(key"]),
    "config has attributes": (HOOK + "\n    context.log.info(context.config.url)", 2, ['write context.config["url"]']),
    "config is written to": (HOOK + "\n    context.config['seen'] = 1", 2, ["cannot be set", "goes into context.data"]),
    "give-back is awaited": (
        f"async {HOOK}\n    await context.continue_(message)",
        2,
        ["context.continue_ is no coroutine function, and returns at once; leave out await"],
    ),
    "verdict is called": (
        f"import mqcore\n{HOOK}\n    context.start_timer(1, context.continue_, message)\n    return mqcore.HOLD()",
        4,
        ["mqcore.HOLD() calls a constant; write mqcore.HOLD"],
    ),
    "own attribute": (HOOK + "\n    message.my_thing = 5", 2, ["message.my_thing", "message.data"]),
    "attribute of the connection": (
        HOOK + "\n    return message.connection.ip and None",
        2,
        ["message.connection.ip", "did you mean peer?"],
    ),
    "own attribute of the connection": (HOOK + "\n    message.connection.seen = 1", 2, ["message.connection.data"]),
    "context's attribute": (HOOK + "\n    context.logger.info('x')", 2, ["context.logger", "did you mean log?"]),
    "header is set": (HOOK + "\n    message.headers['Subject'] = 'x'", 2, ["headers.replace(field, value)"]),
    "header is deleted": (HOOK + "\n    del message.headers['Subject']", 2, ["headers.remove(field)"]),
    "recipients is a text": (HOOK + "\n    message.recipients = 'bob@example.org'", 2, ["a list of addresses"]),
    "recipient is a list": (HOOK + "\n    message.recipient = ['bob@example.org']", 2, ["one address, a str"]),
    "mime is a text": (HOOK + "\n    message.mime = 'Subject: x'", 2, ["the mail as bytes"]),
}

RUN = {
    "header with a newline": (
        HOOK + "\n    message.headers.replace('Subject', b'a\\nb')",
        ["nor a CR or LF that does not fold it", "Subject"],
    ),
    "header that is a number": (HOOK + "\n    message.headers.add('X-Score', 5)", ["is a str or bytes, not 5"]),
    "name of a header": (HOOK + "\n    message.headers.add('X Score:', '5')", ["no blank and no colon", "'X Score:'"]),
    "text before the code": (HOOK + "\n    message.reject('no', 550)", ["reject(550, 'no such user')", "the code is 'no'"]),
    "code that rejects nothing": (HOOK + "\n    message.reject(250, 'fine')", ["from 400 to 599, not 250"]),
    "text in bytes": (HOOK + "\n    message.reject(550, b'no')", ["the text of a rejection is a str"]),
    "text in lines": (HOOK + "\n    message.reject(550, 'no\\nno')", ["must be one line"]),
    "envelope in bytes": (HOOK + "\n    message.envelope = message.mime[:3]", ["the envelope is a str, not b'Sub'"]),
    "recipients get a text": (
        HOOK + "\n    message.recipients = str('x@example.org')",
        ["the recipients are a list of addresses, not 'x@example.org'"],
    ),
    "mime gets a text": (HOOK + "\n    message.mime = str(message.mime)", ["mime is the mail as bytes, not as str"]),
    "returns a call's result": (
        HOOK + "\n    return message.headers.get('Subject')",
        ["returned 'hello' from mq_smtp_in_message", "a hook returns False"],
    ),
    "given back twice": (
        HOOK + "\n    context.continue_(message)\n    context.continue_(message)\n    return True",
        ["mq_smtp_in_message", "10-a", "already"],
    ),
    "given back, then another verdict": (
        "import mqcore\n" + HOOK + "\n    context.continue_(message)\n    return mqcore.COMPLETE",
        ["gave the message back", "return HOLD after giving back"],
    ),
    "given back, HOLD forgotten": (
        HOOK + "\n    context.start_timer(0, context.complete, message)",
        ["10-a", "mq_smtp_in_message"],
    ),
    "given back too late": (
        HOOK + "\n    context.start_timer(0.2, context.continue_, message)\n    return True",
        ["what was to give it back came too late or never"],
    ),
    "kept for longer than the timeout": (
        HOOK + "\n    context.start_timer(0.2, context.continue_, message)\n    return True",
        ["10-a", "mq_smtp_in_message", "hold_timeout of 0.02 s", "the value True by mistake", "`mqcore check`"],
    ),
    "callback is called": (
        HOOK + "\n    context.start_timer(1, context.log.info('x'))\n    return True",
        ["start_timer() needs a callable, not None", "without calling it", "context.continue_, message"],
    ),
    "callback is a coroutine function": (
        f"async def later(message):\n    pass\n{HOOK}\n    context.start_timer(0, later, message)",
        ["later() in /", "10-a.py:1 is a coroutine function", "never ran", "without async", "create_task()"],
    ),
    "key of the config": (
        HOOK + "\n    context.config['database']",
        ["'database'; set it in [plugins.\"10-a\"], or read it by config.get"],
    ),
    "returns FAIL": ("import mqcore\n" + HOOK + "\n    return mqcore.FAIL", ["to fail the step, raise an exception"]),
    "returns a reply": (HOOK + "\n    return 550, 'no'", ["to refuse a mail, call message.reject(550, text)"]),
    "timer's arguments the other way round": (
        HOOK + "\n    context.start_timer(context.continue_, 1, message)\n    return True",
        ["a timer needs seconds, a number, not <built-in method continue_", "start_timer(seconds, callback, *arguments)"],
    ),
    "config is written to": (HOOK + "\n    context.config['database'] = 1", ["does not support item assignment"]),
}


def write(tmp_path, source):
    path = tmp_path / "10-a.py"
    path.write_text(source + "\n")
    return path


def advice(path, **options):
    with mqcore.Plugins(path, trust_writable=True, **options) as plugins:
        (plugin,) = plugins
        return [str(each) for each in advice_for(plugin, dir(Mail), dir(mqcore.Context), dir(Connection))]


def assert_words(text, words):
    assert not [word for word in words if word not in text], text


@pytest.mark.parametrize("mistake", LOADED)
def test_what_is_told_when_it_is_loaded(tmp_path, mistake):
    source, line, words = LOADED[mistake]
    path = write(tmp_path, source)
    with pytest.raises(mqcore.PluginError) as caught:
        advice(path)
    assert_words(str(caught.value), [f"{path}:{line}: plugin 10-a: " if line else f"{path}: plugin 10-a: ", *words])


@pytest.mark.parametrize("mistake", CHECKED)
def test_what_check_tells(tmp_path, mistake):
    source, line, words = CHECKED[mistake]
    path = write(tmp_path, source)
    said = advice(path)
    assert len(said) == 1
    assert_words(said[0], [f"{path}:{line}: plugin 10-a: warning: ", *words])


@pytest.mark.parametrize("mistake", RUN)
def test_what_is_told_when_it_runs(tmp_path, mistake, caplog):
    source, words = RUN[mistake]

    def told(mail):
        lines = [f"{each.name} {each.getMessage()} {each.exc_info[1] if each.exc_info else ''}" for each in caplog.records]
        return "\n".join([repr(mail.error), *lines])

    async def run():
        asyncio.get_running_loop().set_exception_handler(names_plugins(plugins))
        mail = Mail(MIME)
        with mqcore.Dispatcher(plugins, hold_timeout=0.02) as dispatcher:
            await dispatcher.hook("mq_smtp_in_message")(mail)
            # What a timer does is told some time after the hook's end.
            deadline = time.monotonic() + 30
            while not all(word in told(mail) for word in words) and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
        return told(mail)

    caplog.set_level(logging.INFO, "mqcore")
    with mqcore.Plugins(write(tmp_path, source), trust_writable=True) as plugins:
        assert_words(uvloop.run(run()), words)


def test_a_key_that_is_misspelt_in_the_config(tmp_path, caplog):
    async def run():
        mail = Mail(MIME)
        with mqcore.Dispatcher(plugins) as dispatcher:
            await dispatcher.hook("mq_smtp_in_message")(mail)
        return str(mail.error)

    hint = "the plugin's config has no blocked, but bloked, which may be meant"
    config = {"10-a": {"bloked": [], "other": 1}}
    path = write(tmp_path, HOOK + "\n    context.config['blocked']")
    with mqcore.Plugins(path, trust_writable=True, config=config) as plugins:
        assert uvloop.run(run()) == f"'blocked'; {hint}"
    path.write_text("def mq_context_initialize(context):\n    context.config['blocked']\n")
    said = pytest.raises(mqcore.PluginError, match=f"KeyError: 'blocked'; {hint}")
    with mqcore.Plugins(path, trust_writable=True, config=config) as plugins, said:
        uvloop.run(run())


def test_a_key_that_the_config_has_not(tmp_path):
    path = write(tmp_path, "def mq_context_initialize(context):\n    context.config['database']")

    async def begin():
        mqcore.Dispatcher(plugins)

    with mqcore.Plugins(path, trust_writable=True) as plugins, pytest.raises(mqcore.PluginError) as caught:
        uvloop.run(begin())
    assert_words(
        str(caught.value), [f"{path}:2: plugin 10-a: ", "KeyError: 'database'", 'set it in [plugins."10-a"]', "config.get"]
    )


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("smtp_in_mailfrom", "mq_smtp_in_mailfrom"),
        ("smtp_in_mail", "mq_smtp_in_mailfrom"),
        ("on_smtp_in_rcpt", "mq_smtp_in_rcptto"),
        ("in_message", "mq_smtp_in_message"),
        ("smtp_in_mesage", "mq_smtp_in_message"),
        ("SMTP_OUT_SENT", "mq_smtp_out_sent"),
    ],
)
@pytest.mark.parametrize("other", ["", "def mq_smtp_in_close(context, message): pass"])
def test_a_function_that_is_named_nearly_as_a_hook(tmp_path, caplog, name, hook, other):
    path = write(tmp_path, f"import os\ndef {name}(context, message): pass\n{other}")
    assert advice(path) == []
    assert caplog.messages == [f"{path}:2: {name} is no hook, so nobody calls it; did you mean {hook}?"]


@pytest.mark.parametrize("name", ["message", "insecure", "smtp", "smtp_in", "_smtp_in_message", "smtp_in_message_size"])
def test_a_function_that_is_named_otherwise(tmp_path, caplog, name):
    advice(write(tmp_path, f"def {name}(): pass\ndef mq_smtp_in_close(context, message): pass"))
    assert caplog.messages == []


def test_no_false_alarm_on_the_examples():
    with mqcore.Plugins(EXAMPLES / "plugins") as plugins:
        assert len(plugins) == 8
        told = [advice_for(each, dir(Mail), dir(mqcore.Context), dir(Connection)) for each in plugins]
        assert told == [[]] * 8


def test_opening_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    path = write(tmp_path, f"{HOOK}\n    open({str(tmp_path / 'fifo')!r})")
    (said,) = advice(path)
    assert_words(said, [":2: ", "open of a FIFO", "O_NONBLOCK"])


def test_the_deadline_is_that_of_the_config(tmp_path):
    path = write(tmp_path, HOOK + "\n    context.start_timer(40, context.continue_, message)\n    return True")
    for timeout, expected in ((60, 0), (0, 0), (20, 1)):
        assert len(advice(path, config={"10-a": {"hold_timeout": timeout}})) == expected


RIGHT = {
    "verdicts": """
        from mqcore import COMPLETE, RETRY
        def mq_smtp_in_message(context, message):
            if message.size > 5:
                return COMPLETE
            return RETRY if not message.envelope else None
        """,
    "and": "def mq_smtp_in_message(context, message):\n    import mqcore\n    return message.size > 5 and mqcore.COMPLETE",
    "timer": """
        import mqcore
        def mq_smtp_in_message(context, message):
            context.start_timer(2.0, context.continue_, message)
            return mqcore.HOLD
        """,
    "timer without the message": """
        def mq_smtp_in_message(context, message):
            context.start_timer(2000, print, "tick")
            return False
        """,
    "hold": """
        def mq_smtp_in_message(context, message):
            hold = context.hold(message)
            hold.start_timer(2.0, hold.continue_)
            return hold
        """,
    "closure": """
        def mq_smtp_in_message(context, message):
            def later():
                context.complete(message)
            context.start_timer(1, later)
            return True
        """,
    "lambda": HOOK + "\n    context.start_timer(1, lambda: context.retry(message))\n    return True",
    "what makes a callback": """
        import functools
        def later(message):
            return lambda: message.data
        def mq_smtp_in_message(context, message):
            context.start_timer(1, later(message))
            context.start_timer(1, functools.partial(context.log.info, "tick"))
            context.start_timer(1, message.payload.complete())
        """,
    "queue": """
        WAITING = []
        def mq_smtp_in_message(context, message):
            WAITING.append(message)
            return True
        """,
    "queue in the data": """
        def mq_smtp_in_message(context, message):
            context.data.setdefault("waiting", {})[message.envelope] = message
            return True
        """,
    "assigned": "def mq_smtp_in_message(context, message):\n    context.data['last'] = message\n    return True",
    "another function decides": """
        def start(context, message):
            context.start_timer(1, context.continue_, message)
            return True
        def mq_smtp_in_message(context, message):
            return start(context, message)
        """,
    "any arguments": "def mq_smtp_in_message(*args):\n    return True",
    "coroutines that somebody runs": """
        import asyncio
        TASKS = set()
        async def look(address, also=None): ...
        async def mq_smtp_in_message(context, message):
            if await look("x"):
                return None
            later = look("x")
            one, two = look("y"), asyncio.sleep(1)
            task = asyncio.create_task(look("z"))
            TASKS.add(task)
            asyncio.run_coroutine_threadsafe(look("z"), asyncio.get_running_loop())
            if later is not None:
                await later
            await asyncio.wait_for(look("w"), 1)
            found = await asyncio.gather(one, two, *[look(each) for each in message.recipients])
            async with asyncio.TaskGroup() as group:
                group.create_task(look("a"))
            message.data["later"] = look("b")
            return any(found) and None
        def mq_smtp_in_connect(context, message):
            return look("x") if message.recipients else None
        def mq_smtp_in_rcptto(context, message, address):
            answer = look(address)
            if answer:
                return answer
        """,
    "other functions of the same name": """
        async def look(address): ...
        async def numbers():
            yield 5
        async def mq_smtp_in_message(context, message):
            look = context.data["look"]
            if look("x"):
                return None
            async for each in numbers():
                context.log.info("%s", each)
            found = [each async for each in numbers()]
        """,
    "loop in a thread": """
        import asyncio
        async def look(): ...
        async def mq_smtp_in_message(context, message):
            def work():
                return asyncio.run(look())
            await asyncio.to_thread(work)
            await asyncio.to_thread(asyncio.run, look())
        """,
    "helper that holds": """
        def start(context, message):
            wanted = message.size > 5
            if wanted:
                context.start_timer(1, context.continue_, message)
            return wanted
        def starts(context, message):
            context.start_timer(1, context.continue_, message)
            return message.size > 5
        def mq_smtp_in_message(context, message):
            return start(context, message)
        def mq_smtp_in_connect(context, message):
            return starts(context, message)
        """,
    "variable of verdicts": """
        import mqcore
        def mq_smtp_in_message(context, message):
            verdict = None
            if message.size > 5:
                verdict = mqcore.COMPLETE
            return verdict
        """,
    "flag that is always false": """
        def mq_smtp_in_message(context, message):
            verdict = False
            return verdict
        """,
    "hold and a variable": """
        def mq_smtp_in_message(context, message):
            asks = message.size > 5
            if asks:
                context.start_timer(1, context.continue_, message)
            return asks
        """,
    "sleeps in a thread": """
        import asyncio, time
        def slow():
            time.sleep(1)
        async def mq_smtp_in_message(context, message):
            await asyncio.to_thread(slow)
            await asyncio.to_thread(time.sleep, 1)
            await asyncio.get_running_loop().run_in_executor(None, lambda: time.sleep(1))
        """,
    "thread": """
        import subprocess, threading
        def mq_smtp_in_message(context, message):
            def work():
                subprocess.run(["true"])
                context.continue_(message)
            threading.Thread(target=work).start()
            return True
        """,
    "blocks where it may": """
        import subprocess, time
        def mq_initialize():
            subprocess.run(["true"])
        def mq_context_cleanup(context):
            time.sleep(0)
        def mq_smtp_in_message(context, message): pass
        """,
    "asyncio": """
        import asyncio
        async def mq_smtp_in_message(context, message):
            async with asyncio.timeout(5):
                await asyncio.sleep(0.1)
            return False
        """,
    "names that are others": """
        class requests:
            get = staticmethod(len)
        def sleep(seconds): pass
        def mq_smtp_in_message(context, message):
            sleep(1)
            mine = {}
            mine.get("x")
        """,
    "connection with a timeout": """
        import socket
        def mq_smtp_in_message(context, message):
            socket.create_connection(("127.0.0.1", 1), 0.1)
            socket.create_connection(("127.0.0.1", 1), timeout=0.1)
        """,
    "file": "def mq_smtp_in_message(context, message):\n    open('/dev/null').close()",
    "mail": """
        def mq_smtp_in_message(context, message):
            message.headers.replace("Subject", "x")
            message.recipients = [message.recipient or "bob@example.org"]
            message.mime = b"X: y\\n" + message.mime
            message.json["mine"] = message.data["mine"] = 5
            if message.connection is not None:
                message.connection.data["x"] = 1
            if "spam" in message.headers.get("Subject", ""):
                message.reject(550, "no")
            return False
        """,
    "other names": "def mq_smtp_in_message(ctx, mail):\n    ctx.start_timer(1, ctx.continue_, mail)\n    return True",
    "task": """
        import asyncio
        TASKS = set()
        async def ask(context, message):
            context.continue_(message)
        def mq_smtp_in_message(context, message):
            TASKS.add(asyncio.create_task(ask(context, message)))
            return True
        """,
    "decorated": """
        import functools
        def counted(function):
            @functools.wraps(function)
            def inner(context, message):
                return function(context, message)
            return inner
        @counted
        def mq_smtp_in_message(context, message):
            return None
        """,
    "connect": "def mq_smtp_in_connect(context, message):\n    context.log.info('%s', message.connection.peer)",
}


@pytest.mark.parametrize("right", RIGHT)
def test_no_false_alarm(tmp_path, right):
    assert advice(write(tmp_path, textwrap.dedent(RIGHT[right]).strip())) == []


def test_methods_of_objects_and_packages(tmp_path):
    package = tmp_path / "20-b"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import plugin\nmq_smtp_in_message = plugin.mq_smtp_in_message\n")
    (package / "inner.py").write_text(
        "import time\nclass Plugin:\n    def ask(self):\n        time.sleep(1)\n"
        "    def mq_smtp_in_message(self, context, message):\n        self.ask()\n        return True\nplugin = Plugin()\n"
    )
    sleeps, holds = advice(package)
    assert_words(sleeps, [f"{package}/inner.py:4: plugin 20-b: warning: ask, for mq_smtp_in_message, calls time.sleep"])
    assert_words(holds, [f"{package}/inner.py:7: plugin 20-b: ", "return False"])


# What no plugin is, and files that are none


def test_a_file_beside_it_cannot_be_imported(tmp_path):
    (tmp_path / "shared.py").touch()
    path = write(tmp_path, "import shared")
    with pytest.raises(mqcore.PluginError) as caught:
        advice(path)
    assert_words(str(caught.value), [f"{path}:1: ", "shared.py is beside it", "make both a package", "`from . import shared`"])


def test_what_is_compiled_has_to_be_built(tmp_path):
    package = tmp_path / "10-fast"
    package.mkdir()
    (package / "__init__.py").write_text("from ._hooks import mq_smtp_in_message\n")
    (package / "_hooks.pyx").touch()
    with pytest.raises(mqcore.PluginError, match="_hooks.pyx is not built yet: run `python setup.py build_ext --inplace`"):
        advice(package)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"class Audit:\n    {HOOK} pass", ["mq_smtp_in_message is in the class Audit", "write it outside of the class"]),
        ("def on_login(context, message, user): pass", ["if on_login is a hook of a server of your own", "--hooks MODULE"]),
        ("def MQ_SMTP_IN_MESSAGE(context, message): pass", ["did you mean mq_smtp_in_message?"]),
        ("x = 1", ["if it is no plugin, begin its name with _"]),
    ],
)
def test_a_file_without_a_hook(tmp_path, caplog, source, words):
    with mqcore.Plugins(write(tmp_path, source), trust_writable=True):
        assert_words(caplog.text, words)


def test_what_is_no_plugin(tmp_path):
    def mq_smtp_in_message(context, message):
        pass

    plugins = mqcore.Plugins()
    for obj, said in (
        (None, "a path is for"),
        (str(tmp_path), r"a path is for Plugins\(path\)"),
        (mq_smtp_in_message, r"types.SimpleNamespace\(mq_smtp_in_message=...\)"),
    ):
        with pytest.raises(TypeError, match=said):
            plugins.add("10-a", obj)
    with pytest.raises(TypeError, match=r"is a str or os.PathLike, not \['a', 'b'\]; .* as Plugins\('a', 'b'\)"):
        mqcore.Plugins(["a", "b"])
    with pytest.raises(TypeError, match="config=, where it is no mapping, is a str or os.PathLike, not 3"):
        mqcore.Plugins(config=3)


def test_a_hook_has_context_and_message_without_a_word():
    with pytest.raises(ValueError, match="name only what comes after them"):
        mqcore.HookSpec("on_upload", "context", "message", "folder")


def test_files_of_config_that_are_none(tmp_path, caplog):
    path, config = write(tmp_path, HOOK + " pass"), tmp_path / "mqcore.toml"
    config.write_bytes(b'\xef\xbb\xbf[plugins.10-a]\nx = 1\n')
    with pytest.raises(mqcore.PluginError, match="mqcore.toml:1: it begins with a byte order mark"):
        mqcore.Plugins(path, config=config, trust_writable=True)
    config.write_text("[plugins.10-a.py]\nx = 1\n")
    with mqcore.Plugins(path, config=config, trust_writable=True):
        assert "its config has a table py; did you mean [plugins.10-a]?" in caplog.text


def test_a_missing_setting_is_a_key_error_that_can_be_pickled(tmp_path):
    with mqcore.Plugins(write(tmp_path, HOOK + " pass"), trust_writable=True) as plugins:
        (plugin,) = plugins
        with pytest.raises(KeyError) as caught:
            plugin.config["database"]
    assert caught.value.args == ("database",) and "database" not in plugin.config
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
