"""What is counted of native hooks, read at any moment: also in the middle of a run_many(), which counts them at its end."""

from __future__ import annotations

import itertools
import threading

import pytest
from native_tools import Puppet, compile_plugin, mq, start

import mqcore

NAMES = ("10-first", "20-second", "30-third")
PASSES_ON = """
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context;
    (void)message;
    return connection == NULL;
}
"""
COUNT = 50  # messages: the first are passed on with the GIL, the others without


def calls(dispatcher):
    """Of the hook that is run, by each plugin."""
    return tuple(row.calls for row in dispatcher.stats().hooks if row.hook == "mq_step")


def books(dispatcher):
    stats = dispatcher.stats()
    return stats.entered, stats.continued, stats.running, stats.held


@pytest.fixture
def chain(owner, tmp_path):
    """A dispatcher over three puppets, and these."""
    puppets = [Puppet(tmp_path / f"{name}.so") for name in NAMES]
    return start(owner, puppets), puppets


def test_calls_and_books_in_every_hook(chain):
    dispatcher, puppets = chain
    seen = []
    for puppet in puppets:
        puppet.step = lambda *_: seen.append((calls(dispatcher), books(dispatcher)))
    messages = [mqcore.Message() for _ in range(COUNT)]
    assert dispatcher.hook("mq_step").run_many(messages) == [mqcore.CONTINUE] * COUNT
    assert seen == [
        (tuple(passed + (row <= place) for row in range(3)), (passed + 1, passed, 1, 0))
        for passed in range(COUNT)
        for place in range(3)
    ]
    assert calls(dispatcher) == (COUNT,) * 3 and books(dispatcher) == (COUNT, COUNT, 0, 0)


def test_run_many_in_a_hook_of_run_many(chain):
    dispatcher, puppets = chain
    hook = dispatcher.hook("mq_step")
    seen = []
    depth = 0

    def second(*_):
        nonlocal depth
        seen.append((depth, calls(dispatcher)))
        if depth == 0:
            depth = 1
            hook.run_many([mqcore.Message() for _ in range(20)])
            depth = 0
            seen.append((2, calls(dispatcher)))
        return False

    puppets[1].step = second
    hook.run_many([mqcore.Message() for _ in range(3)])
    expected = []
    for passed in range(3):
        inner = 20 * passed
        expected.append((0, (passed + inner + 1, passed + inner + 1, passed + inner)))
        expected += [(1, (passed + inner + 2 + each, passed + inner + 2 + each, passed + inner + each)) for each in range(20)]
        expected.append((2, (passed + inner + 21, passed + inner + 21, passed + inner + 20)))
    assert seen == expected
    assert calls(dispatcher) == (63,) * 3 and books(dispatcher) == (63, 63, 0, 0)


def test_a_message_that_is_taken_on_the_way(owner, chain):
    """What comes after it is not counted for that one, until it has gone on."""
    dispatcher, puppets = chain
    held, seen = [], []

    def second(context, connection, message):
        seen.append(calls(dispatcher))
        if len(seen) % 20 == 5:
            held.append(connection)
            return True
        return False

    puppets[1].step = second
    owner.finished.clear()
    outcomes = dispatcher.hook("mq_step").run_many([mqcore.Message() for _ in range(COUNT)], done=owner.done)
    assert [index for index, outcome in enumerate(outcomes) if outcome is None] == [4, 24, 44]
    assert seen == [(each + 1, each + 1, each - sum(each > place for place in (4, 24, 44))) for each in range(COUNT)]
    assert calls(dispatcher) == (COUNT, COUNT, COUNT - 3) and books(dispatcher) == (COUNT, COUNT - 3, 0, 3)
    for connection in held:
        mq.MQ_continue(connection)
    owner.run_until(lambda: len(owner.finished) == 3)
    assert calls(dispatcher) == (COUNT,) * 3 and books(dispatcher) == (COUNT, COUNT, 0, 0)


def test_one_that_is_cancelled_before_its_turn(chain):
    dispatcher, puppets = chain
    messages = [mqcore.Message() for _ in range(COUNT)]
    seen = []

    def first(*_):
        if len(seen) == 20:
            dispatcher.cancel(messages[30])
            dispatcher.cancel(messages[20])  # this one
        seen.append(calls(dispatcher)[0])

    puppets[0].step = first
    outcomes = dispatcher.hook("mq_step").run_many(messages)
    assert [index for index, outcome in enumerate(outcomes) if outcome is mqcore.FAIL] == [20, 30]
    assert seen == list(range(1, COUNT))  # not for the one that never came to its turn
    assert calls(dispatcher) == (COUNT - 1, COUNT - 2, COUNT - 2)


def test_another_thread_never_sees_a_number_fall(owner, tmp_path):
    """While the hooks are called without the GIL."""
    plugins = mqcore.Plugins()
    for name in NAMES:
        plugins.load(compile_plugin(tmp_path / f"{name}.so", PASSES_ON))
    dispatcher = owner.dispatcher(plugins)
    messages = [mqcore.Message() for _ in range(20_000)]
    over = threading.Event()
    seen = []

    def watch():
        while not over.is_set():
            stats = dispatcher.stats()
            seen.append((stats.entered, stats.continued, *(row.calls for row in stats.hooks)))

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(20):
        dispatcher.hook("mq_smtp_in_message").run_many(messages)
    over.set()
    thread.join()
    for earlier, later in itertools.pairwise(seen):
        assert all(before <= after for before, after in zip(earlier, later, strict=True))
    assert [row.calls for row in dispatcher.stats().hooks if row.calls] == [400_000] * 3
