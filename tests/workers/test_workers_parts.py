"""The parts of which supervisor and worker are made, each by itself."""

from __future__ import annotations

import asyncio
import json
import os
from types import SimpleNamespace

import pytest
import uvloop
from smtp_tools import plugin
from waiting import until

import mqcore
from mqcore.mail import Gateway, Mail, NullSink, Origin, Source, Transaction
from mqcore.mail.report import Counts
from mqcore.server.exposition import Family
from mqcore.workers import blame as blaming
from mqcore.workers.blame import Blame
from mqcore.workers.channel import Channel
from mqcore.workers.merged import merge
from mqcore.workers.page import Page
from mqcore.workers.shown import _labelled
from mqcore.workers.slot import Slot
from mqcore.workers.start import VARIABLE, Start


def test_a_page_is_seen_by_both():
    page = Page.make(10)
    other = Page(os.dup(page.fd))
    page.counts.read += 3
    page.counts.continued += 2
    assert (other.counts.read, other.counts.settled, other.digests()) == (3, 2, set())
    assert repr(other.counts) == "Counts(read=3, continued=2)"
    page.close()
    other.close()
    assert other.counts.read == 3  # the memory stays as long as anybody looks at it


def test_counts_without_a_page():
    counts = Counts(read=5)
    counts.add(Counts(read=1, failed=1))
    assert (counts.read, counts.failed, counts.as_dict()["read"]) == (6, 1, 6)
    with pytest.raises(AttributeError):
        counts.nonsense = 1
    with pytest.raises(OverflowError):
        counts.read = -1


def test_what_a_worker_is_given(monkeypatch):
    fds = [os.dup(0) for _ in range(3)]
    try:
        start = Start(fds[0], fds[1], (fds[2],), "smtp://x:25", 1, 7, 2, 3, suspects=(5,), paused=("a",), maildirs=())
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
        environment = start.environment()
        assert "NOTIFY_SOCKET" not in environment
        monkeypatch.setenv(VARIABLE, environment[VARIABLE])
        assert Start.take() == start
        assert Start.take() is None
    finally:
        for fd in fds:
            os.close(fd)


def test_pauses_between_crashes():
    slot = Slot(0, [])
    assert [slot.crashed(SimpleNamespace(age=1.0)) for _ in range(4)] == [0.1, 0.2, 0.4, 0.8]
    assert slot.early_crashes == 4
    assert [slot.crashed(SimpleNamespace(age=20.0)) for _ in range(7)][-1] == 30.0
    assert slot.early_crashes == 0
    assert slot.crashed(SimpleNamespace(age=61.0)) == 0.1


def test_blame(monkeypatch):
    changes = []
    blame = Blame(lambda: changes.append((set(blame.suspects), set(blame.refused))))
    blame.died({1, 2})
    blame.died({2, 3})
    assert changes[-1] == ({2}, set())
    blame.died({2, 4})  # it was not alone
    assert changes[-1] == ({2}, set())
    blame.died({2})
    assert changes[-1] == (set(), {2})
    monkeypatch.setattr(blaming.time, "monotonic", lambda: 1e9)
    blame.expire()
    assert changes[-1] == (set(), set())
    monkeypatch.undo()
    blame.died({5})
    blame.died({5})
    blame.survived(5)
    assert changes[-1] == (set(), set())


def test_lines_of_the_channel():
    heard = []
    channel = Channel(heard.append, lambda: None)
    line = json.dumps({"do": "stop", "text": "\n"}).encode() + b"\n"
    channel.data_received(line[:5])
    channel.data_received(line[5:] + line + line[:-1])
    channel.data_received(b"\n")
    assert heard == [{"do": "stop", "text": "\n"}] * 3


def test_figures_are_put_together():
    one = {
        "ready": True, "started": 5.0, "steps": {"held": 1}, "refusals": [["rcptto", 550, 2]], "paused": ["a"], "loop": None,
        "lag": {"bounds": [1, 2], "counts": [1, 0, 0], "sum": 0.5}, "source": "smtp:",
        "plugins": [{"plugin": "p", "hook": "h", "calls": 2, "longest": 1.0, "hold_times": None, "held_oldest": 3.0}],
    }  # fmt: skip
    other = {
        "ready": False, "started": 4.0, "steps": {"held": 2, "running": 1}, "refusals": [["rcptto", 550, 1], ["data", 451, 1]],
        "lag": {"bounds": [1, 2], "counts": [0, 0, 4], "sum": 1.0}, "source": "smtp:", "paused": ["a", "b"],
        "loop": {"longest": 2},
        "plugins": [{"plugin": "p", "hook": "h", "calls": 3, "longest": 0.5, "hold_times": [1, 2], "held_oldest": None}],
    }  # fmt: skip
    assert merge([one, other]) == {
        "ready": False, "started": 4.0, "steps": {"held": 3, "running": 1}, "refusals": [["rcptto", 550, 3], ["data", 451, 1]],
        "lag": {"bounds": [1, 2], "counts": [1, 0, 4], "sum": 1.5}, "source": "smtp:", "paused": ["a", "b"],
        "loop": {"longest": 2},
        "plugins": [{"plugin": "p", "hook": "h", "calls": 5, "longest": 1.0, "hold_times": [1, 2], "held_oldest": 3.0}],
    }  # fmt: skip


def test_each_family_is_there_once():
    family = Family("held", "gauge", "Help.", ["", '{plugin="p"}', '_bucket{le="1"}'], [1, 2, 3])
    (merged,) = _labelled([("0", [family]), ("1", [family])])
    assert merged.labels[:3] == ['{worker="0"}', '{worker="0",plugin="p"}', '_bucket{worker="0",le="1"}']
    assert (len(merged.labels), merged.numbers) == (6, [1, 2, 3, 1, 2, 3])


def test_what_is_in_hand(tmp_path):
    """By a digest that is the same for the same bytes, in any process of the run, and in no other run."""
    seen = [uvloop.run(in_hand(text, seed)) for text, seed in [(b"a", 1), (b"a", 1), (b"b", 1), (b"a", 2), (b"a" * 5000, 1)]]
    assert seen[0] == seen[1]
    assert len(set(map(frozenset, seen))) == 4
    assert all(len(each) == 1 for each in seen)


async def in_hand(text, seed):
    """The digests while a plugin holds a mail with this text."""
    page = Page.make(100)
    kept = []
    hook = plugin(message=lambda context, message: kept.append((context, message)) or True)
    plugins = mqcore.Plugins()
    plugins.add("10-holds", hook)
    with mqcore.Dispatcher(plugins) as dispatcher:
        gateway = Gateway(dispatcher, OneMail(text), NullSink(""), counts=page.counts, hand=page.hand(seed), processes=2)
        running = asyncio.create_task(gateway.run())
        await until(lambda: kept)
        digests = page.digests()
        (context, message), = kept
        context.continue_(message)
        await running
    assert (page.digests(), page.counts.read, page.counts.stored) == (set(), 1, 1)
    kept.clear()
    page.close()
    return digests


class OneMail(Source):
    url = "one:"

    def __init__(self, text):
        self.text = text

    async def run(self, gateway):
        gateway.offer([Transaction([Mail.read(Origin(b"Subject: x\r\n\r\n" + self.text, "0" * 32))])])

    def stop(self):
        pass


class ManyMails(OneMail):
    """Offered one after the other, without waiting."""

    has_waiting_client = True

    def __init__(self, *texts):
        self.texts = texts
        self.verdicts = {}
        self.over = asyncio.Event()

    async def run(self, gateway):
        source = self

        class Told(Transaction):
            def settle(self, verdicts):
                source.verdicts[self.mails[0].origin.mime] = verdicts[0]
                if len(source.verdicts) == len(source.texts):
                    source.over.set()

        for number, text in enumerate(self.texts):
            gateway.offer([Told([Mail.read(Origin(text, f"{number:032}"))])])
        await self.over.wait()


def test_a_suspect_runs_alone():
    async def main():
        suspect, digests = b"suspect", {}
        for text in (b"first", suspect, b"last"):
            (digests[text],) = await in_hand_of(text)
        seen, survived = [], []
        source = ManyMails(b"first", suspect, b"last")

        def message(context, message):
            seen.append(message.mime)
            context.start_timer(0.01, context.continue_, message)
            at_once.append(page.digests())
            return mqcore.HOLD

        page, at_once = Page.make(100), []
        with mqcore.Dispatcher(plugins_of(message)) as dispatcher:
            hand = page.hand(1)
            hand.suspects, hand.survived = frozenset({digests[suspect]}), survived.append
            await Gateway(dispatcher, source, NullSink(""), counts=page.counts, hand=hand).run()
        assert seen == [b"first", suspect, b"last"]
        assert at_once == [{digests[text]} for text in seen]
        assert survived == [digests[suspect]]
        assert page.counts.stored == 3

    uvloop.run(main())


def test_a_suspect_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("mqcore.mail._gateway.ALONE_IN", 0.01)

    async def main():
        (digest,) = await in_hand_of(b"suspect")
        kept, source, page = [], ManyMails(b"held", b"suspect", b"other"), Page.make(100)

        def message(context, message):
            if message.mime != b"held":
                context.continue_(kept.pop())
                return False
            kept.append(message)
            return mqcore.HOLD

        with mqcore.Dispatcher(plugins_of(message)) as dispatcher:
            hand = page.hand(1)
            hand.suspects = frozenset({digest})
            await Gateway(dispatcher, source, NullSink(""), counts=page.counts, hand=hand).run()
        assert source.verdicts[b"suspect"].reply.code == 451
        assert (page.counts.stored, page.counts.rejected, page.digests()) == (2, 1, set())

    uvloop.run(main())


def test_a_message_that_is_refused_unseen():
    async def main():
        (digest,) = await in_hand_of(b"refused")
        seen, source, page = [], ManyMails(b"refused", b"other"), Page.make(100)
        with mqcore.Dispatcher(plugins_of(lambda context, message: seen.append(message.mime))) as dispatcher:
            hand = page.hand(1)
            hand.refused = frozenset({digest})
            await Gateway(dispatcher, source, NullSink(""), counts=page.counts, hand=hand).run()
        assert (seen, source.verdicts[b"refused"].reply.code) == ([b"other"], 554)
        assert (page.counts.stored, page.counts.rejected) == (1, 1)

    uvloop.run(main())


def plugins_of(message):
    plugins = mqcore.Plugins()
    plugins.add("10-plugin", plugin(message=message))
    return plugins


async def in_hand_of(text):
    page, seen = Page.make(10), []
    with mqcore.Dispatcher(plugins_of(lambda context, message: seen.append(page.digests()))) as dispatcher:
        await Gateway(dispatcher, ManyMails(text), NullSink(""), hand=page.hand(1)).run()
    return seen[0]
