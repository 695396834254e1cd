"""The bytes of one mail to many recipients, which plugins change: little memory, a file, and the right bytes all the same."""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from smtp_tools import TEXT, codes, plugin, run, serving
from test_mail_gateway import envelope

from mqcore.mail import Mail, _spool
from mqcore.mail._mail import bytes_of, put_in_spool
from mqcore.mail._spool import Memory, Spool

BODY = random.Random(1).randbytes(50_000)


def variants(seed: int) -> list[bytes]:
    """What plugins make of one mail: nothing, headers, lines at the end, both, something in the middle, all else, the same."""
    rng = random.Random(seed)
    made = [BODY]
    for number in range(60):
        base = rng.choice(made)
        at = rng.randrange(len(base) + 1)
        made.append(rng.choice([
            base,
            b"X-For: %d\r\n" % number + base,
            base + b"\r\n--\r\n%d" % number,
            b"%d" % number + base + b"%d" % number,
            base[:at] + b"%d" % number + base[at:],
            base[:at],
            base[at:],
            base[at:] + base[:at],
            rng.randbytes(rng.choice([0, 1, 4095, 4096, 4097, 60_000])),
            base[:1] * rng.choice([1, 8192, 50_000]),
        ]))
    return made


@pytest.mark.parametrize("limit", [0, 60_000, 1 << 30])
@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_given_as_they_were(seed, limit, small_memory):
    small_memory(limit)
    memory = Memory()
    shared = Spool(memory)
    texts = variants(seed)
    mails = [Mail(bytes(bytearray(text))) for text in texts]
    for mail in mails:
        put_in_spool(mail, shared)
    assert memory.used <= limit
    assert [mail.mime for mail in mails] == texts
    assert [mail.size for mail in mails] == list(map(len, texts))
    by_bytes = {}
    for mail in mails:
        assert by_bytes.setdefault(bytes_of(mail), mail.mime) == mail.mime
    random.Random(seed).shuffle(mails)
    for mail in mails[::2]:
        mail.mime = b"new" + mail.mime
        put_in_spool(mail, shared)
    assert sorted(mail.mime for mail in mails) == sorted([*(b"new" + mail.origin.mime for mail in mails[::2]),
                                                          *(mail.origin.mime for mail in mails[1::2])])
    del mails, mail, by_bytes, shared
    gc.collect()
    assert memory.used == 0


def test_the_same_change_for_two_is_the_same_to_a_sink():
    shared = Spool(Memory())
    mails = [Mail(tag + BODY) for tag in (b"", b"A: 1\n", b"A: 2\n", b"A: 1\n")]
    for mail in mails:
        put_in_spool(mail, shared)
    assert [bytes_of(mails[1]) == bytes_of(mail) for mail in mails] == [False, True, False, True]
    assert hash(bytes_of(mails[1])) == hash(bytes_of(mails[3]))


@pytest.fixture
def small_memory(monkeypatch):
    """Lets a gateway keep only so many octets in memory."""
    return lambda limit: monkeypatch.setattr(_spool, "MEMORY", limit)


@run
async def test_where_the_file_cannot_be_written_the_client_comes_again(monkeypatch, small_memory):
    small_memory(0)
    made = []

    def no_room(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def message(context, mail):
        mail.mime = mail.recipient.encode() * 5_000
        made.append(mail)

    async with serving({"10-new": plugin(message=message)}) as it:
        monkeypatch.setattr("tempfile.TemporaryFile", no_room)
        client = await it.greeted()
        replies = await client.asks(envelope(20), 22)
        assert codes(replies)[-1].startswith("354")
        assert codes([await client.ask(TEXT + b".\r\n")]) == ["452 4.3.1"]
        assert it.sink.mails == []
        monkeypatch.undo()
        await client.asks(envelope(20), 22)
        assert codes([await client.ask(TEXT + b".\r\n")]) == ["250 2.6.0"]
        assert [mail.mime for mail in it.sink.mails] == [mail.recipient.encode() * 5_000 for mail in it.sink.mails]
        assert len(it.sink.mails) == 20
    assert it.gateway.report.counts.unfinished == 20


HUGE = """
    import asyncio, os, resource, sys
    sys.path[:0] = {path!r}
    from smtp_tools import serving, plugin
    from test_mail_gateway import envelope
    from mqcore.mail import MboxSink, MaildirSink, NullSink
    from pathlib import Path

    def message(context, mail):
        {change}

    sink = {sink}

    async def main():
        async with serving({{"10-change": plugin(message=message)}}, sink=sink) as it:
            client = await it.greeted()
            await client.asks(envelope({recipients}), {recipients} + 2)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            line = b"x" * 998 + b"\\r\\n"
            for _ in range({megabytes}):
                client.send(line * 1000)
                await client.writer.drain()
            assert (await client.ask(b".\\r\\n")).startswith("250 2.6.0")
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert it.gateway.memory.used == 0, it.gateway.memory.used
            return used

    with asyncio.Runner(loop_factory=__import__("uvloop").new_event_loop) as runner:
        print(runner.run(main()))
"""


def memory_for(folder: Path, sink: str, change: str, *, megabytes: int, recipients: int) -> int:
    """Octets that a process takes more, while one mail goes through it of which a plugin changes each recipient's."""
    script = textwrap.dedent(HUGE).format(path=sys.path, sink=sink, change=change, megabytes=megabytes, recipients=recipients)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=folder)
    assert result.returncode == 0, result.stderr
    return int(result.stdout) * 1024


def test_twenty_megabytes_to_a_hundred_recipients_with_the_same_header(tmp_path):
    change = 'mail.mime = b"X-Tag: 1\\r\\n" + mail.mime'
    assert memory_for(tmp_path, 'NullSink("")', change, megabytes=20, recipients=100) <= 3.2 * 20_000_000


@pytest.mark.parametrize("sink", [
    'NullSink("")',
    pytest.param("MboxSink(Path('mbox'))", marks=pytest.mark.slow),
    pytest.param("MaildirSink(Path('maildir'))", marks=pytest.mark.slow),
])
@pytest.mark.parametrize(("change", "most"), [
    ('mail.mime = b"X-For: %s\\r\\n" % mail.recipient.encode() + mail.mime', 60),
    ('mail.mime = mail.mime + mail.recipient.encode() + b"\\r\\n"', 60),
    ("mail.mime = os.urandom(1) + bytes(b ^ 1 for b in mail.recipient.encode()) * (10_000_000 // len(mail.recipient))", 140),
], ids=["header", "footer", "all"])
def test_ten_megabytes_to_sixty_recipients_with_a_change_for_each(tmp_path, sink, change, most):
    """600 MB of mail. What is new with each waits in a file."""
    assert memory_for(tmp_path, sink, change, megabytes=10, recipients=60) <= most * 1_000_000
