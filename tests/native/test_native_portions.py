"""What native plugins leave for ticks may be of any length, too: it is worked off one by one, in portions of 1 ms."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cython_tools import build_driver
from native_tools import Puppet, mq, start

import mqcore


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("portions"), Path(__file__).with_name("native_portions_driver.pyx"))


@pytest.fixture
def puppets(tmp_path):
    """The first holds every message, of whose connections it has a list; the second passes on."""
    first, second = Puppet(tmp_path / "10-first.so"), Puppet(tmp_path / "20-second.so")
    first.connections = []

    def step(context, connection, message):
        first.connections.append(connection)
        return True

    first.step = step
    yield [first, second]
    assert not first.errors and not second.errors


def hold(owner, puppets, count, **options):
    dispatcher = start(owner, puppets, **options)
    messages = [mqcore.Message() for _ in range(count)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    return dispatcher, messages


def test_what_was_given_back_goes_on_one_by_one_in_order(owner, puppets, driver):
    dispatcher, messages = hold(owner, puppets, 1_000)
    waiting = []
    puppets[1].step = lambda *handles: waiting.append(driver.given_back(dispatcher))
    for connection in puppets[0].connections:
        mq.MQ_continue(connection)
    assert driver.given_back(dispatcher) == 1_000
    owner.run_until(lambda: len(owner.finished) == 1_000)
    assert waiting == list(range(999, -1, -1))
    assert [message for message, _ in owner.finished] == messages


def test_what_was_given_back_in_time_is_not_too_late_and_no_more_goes_on_than_is_due(owner, puppets, driver):
    """Every other message was given back when all deadlines have passed: those have gone on, the others fail."""
    dispatcher, messages = hold(owner, puppets, 1_000, hold_timeout=0.05)
    for connection in puppets[0].connections[::2]:
        mq.MQ_continue(connection)
    time.sleep(0.06)
    owner.run_until(lambda: len(owner.finished) == 1_000)
    outcomes = dict(owner.finished)
    assert all(outcomes[message] is mqcore.CONTINUE for message in messages[::2])
    assert all(isinstance(message.error, mqcore.HoldTimeout) for message in messages[1::2])
    first, second = dispatcher.stats().hooks
    assert (first.holds, first.continues, first.timeouts, second.calls, first.refused) == (1_000, 500, 500, 500, 0)
    owner.run_until(lambda: driver.given_back(dispatcher) == 0)  # slots of those that did not wait for their turn


def test_one_that_is_due_goes_on_before_its_turn_and_its_handle_is_stale(owner, puppets, driver):
    """It is given back behind so many others that a tick cannot come to it; and once more when it has gone on."""
    dispatcher, messages = hold(owner, puppets, 40, config={"10-first": {"hold_timeout": 0.05}})
    seen = []
    connections = list(puppets[0].connections)

    def slow(context, connection, message):
        seen.append(driver.given_back(dispatcher))
        time.sleep(0.002)
        return False

    puppets[1].step = slow
    for connection in connections[:-1]:
        mq.MQ_continue(connection)
    mq.MQ_fail(connections[-1], b"on purpose")
    time.sleep(0.06)
    owner.run_until(lambda: len(owner.finished) == 40)
    for connection in connections:
        mq.MQ_continue(connection)
    owner.run_until(lambda: dispatcher.stats().hooks[0].refused == 40)
    outcomes = dict(owner.finished)
    assert [outcomes[message] for message in messages] == [mqcore.CONTINUE] * 39 + [mqcore.FAIL]
    assert "on purpose" in str(messages[-1].error)
    assert max(seen) > 30  # not all of them were taken from the queue at once
    owner.run_until(lambda: driver.given_back(dispatcher) == 0)
    puppets[1].step = None
    again = [mqcore.Message() for _ in range(100)]
    dispatcher.hook("mq_step").run_many(again, done=owner.done)
    for connection in puppets[0].connections[40:]:
        mq.MQ_complete(connection)
    owner.run_until(lambda: len(owner.finished) == 140)
    assert {outcome for _, outcome in owner.finished[40:]} == {mqcore.COMPLETE}


def test_slots_are_taken_one_by_one(owner, puppets, driver):
    dispatcher = start(owner, puppets)
    counts = []

    def step(context, connection, message):
        timers = [puppets[0].timer(context, 1_000, print) for _ in range(2_000)]
        for timer in timers:
            mq.MQ_stopTimer(timer)
        counts.append(driver.let_go(dispatcher))
        mq.MQ_stopTimer(puppets[0].timer(context, 1_000, print))
        counts.append(driver.let_go(dispatcher))
        puppets[0].callbacks.clear()

    puppets[0].step = step
    dispatcher.hook("mq_step").run(mqcore.Message())
    assert counts[0] > 1_000 and abs(counts[1] - counts[0]) <= 1


def test_the_timers_of_a_context_that_ends_are_stopped_in_ticks(owner, puppets, driver):
    """And none of them is called meanwhile, also when it is due."""
    fired, running = [], []
    timers = []

    def begin(context):
        timers.extend(puppets[0].timer(context, 1_000, fired.append) for _ in range(3_000))

    def end(context):
        for timer in timers:
            mq.MQ_resetTimer(timer, 0)

    puppets[0].begin, puppets[0].end = begin, end
    after = SimpleNamespace(mq_context_cleanup=lambda context: running.append(driver.timers(dispatcher)))
    dispatcher = start(owner, puppets[:1], {"20-after": after})
    dispatcher.plugins.remove("10-first")
    dispatcher.plugins.remove("20-after")
    owner.run_until(lambda: driver.timers(dispatcher) == 0)
    assert running == [3_000] and not fired
    for timer in timers:
        mq.MQ_stopTimer(timer)  # stale, or not its own any more: refused


def test_close_when_timers_of_a_context_that_ended_have_not_been_stopped(owner, puppets, driver):
    fired = []
    puppets[0].begin = lambda context: [puppets[0].timer(context, 0.001, fired.append) for _ in range(3_000)]
    after = SimpleNamespace(mq_context_cleanup=lambda context: dispatcher.close())
    dispatcher = start(owner, puppets[:1], {"20-after": after})
    time.sleep(0.002)
    dispatcher.plugins.remove("10-first")
    dispatcher.plugins.remove("20-after")
    owner.run_until(lambda: driver.timers(dispatcher) == 0)
    fired.clear()  # those that were due before it ended
    owner.turn()
    assert not fired


# The queue itself


def test_a_queue(driver):
    queue = driver.Tried()
    assert queue.take() is None
    assert [queue.put(number) for number in range(5)] == [True, False, False, False, False]
    assert [queue.take() for _ in range(3)] == [0, 1, 2]
    assert not queue.put(5)
    assert [queue.take() for _ in range(4)] == [3, 4, 5, None]
    assert queue.is_empty() and queue.put(6)
    assert [queue.take(), queue.take()] == [6, None]


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_a_queue_into_which_a_thread_has_put_an_item_by_half(driver, before, after, taken):
    """It, what comes behind it, and the one before it, cannot be taken yet; nothing is lost, and the queue is not empty."""
    queue = driver.Tried()
    items = list(range(before + 1 + after))
    for number in items[:before]:
        queue.put(number)
    queue.begin_to_put(before)
    for number in items[before + 1 :]:
        assert not queue.put(number)
    got = [queue.take() for _ in range(taken)]
    assert got == [*items[: max(before - 1, 0)], None, None, None][:taken]
    assert not queue.is_empty()
    queue.end_to_put(before)
    rest = [queue.take() for _ in range(len(items) + 1)]
    assert [item for item in (*got, *rest) if item is not None] == items
    assert queue.is_empty() and queue.put(9) and queue.take() == 9


def test_a_queue_whose_last_item_is_taken_while_another_one_comes(driver):
    """What stands in for an item comes behind that one then."""
    queue = driver.Tried()
    queue.put(0)
    queue.begin_to_put(1)
    assert queue.take() is None
    queue.end_to_put(1)
    assert [queue.take(), queue.take(), queue.take()] == [0, 1, None]
