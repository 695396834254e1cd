"""A look at all that is held, in portions: none of them takes long, and messages may come and go in between."""

from __future__ import annotations

import gc
import random
import threading
import weakref

import pytest

import mqcore


class Holds:
    def mq_context_initialize(self, context):
        self.context = context

    def mq_step(self, context, message):
        return mqcore.HOLD


def start(owner, *names, config=None):
    """A dispatcher, and plugins that hold."""
    holds = {name: Holds() for name in names or ["a"]}
    return owner.start(holds, config=config), holds


def hold(owner, dispatcher, count):
    messages = [owner.Message() for _ in range(count)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    return messages


def scanned(dispatcher, steps=10, older=0.0, plugin=None):
    dispatcher._begin_scan(older)
    return [held.message for held in rest(dispatcher, steps, plugin)]


def rest(dispatcher, steps=10, plugin=None):
    found = []
    while (portion := dispatcher._scan(steps, plugin)) is not None:
        assert len(portion) <= steps
        found += portion
    return found


@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_all_that_is_held_in_order(owner, steps):
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 100)
    assert scanned(dispatcher, steps) == messages
    assert dispatcher._scan(1) is None
    assert [held.message for held in dispatcher.held()] == messages


def test_nothing_is_held(owner):
    dispatcher, _ = start(owner)
    assert dispatcher._scan(10) is None  # none was begun
    assert scanned(dispatcher) == []


def test_each_timeout_one_after_the_other(owner):
    dispatcher, holds = start(owner, "a", "b", config={"a": {"hold_timeout": 5}, "b": {"hold_timeout": 50}})
    first, second = hold(owner, dispatcher, 3), hold(owner, dispatcher, 3)
    for message in first:
        holds["a"].context.continue_(message)
    owner.run_until(lambda: all(message.holder == "b" for message in first))
    assert sorted(map(id, scanned(dispatcher, 2))) == sorted(map(id, first + second))
    assert scanned(dispatcher, plugin="b") == first
    assert scanned(dispatcher, plugin="a") == second
    assert scanned(dispatcher, plugin="c") == []


def test_what_ends_where_the_scan_is(owner):
    dispatcher, holds = start(owner)
    messages = hold(owner, dispatcher, 6)
    dispatcher._begin_scan()
    assert [held.message for held in dispatcher._scan(2)] == messages[:2]
    dispatcher.cancel(messages[2])
    holds["a"].context.continue_(messages[3])
    assert [held.message for held in rest(dispatcher, 1)] == messages[4:]


def test_what_was_looked_at_ends_and_what_comes_later_is_left_out(owner):
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 4)
    dispatcher._begin_scan()
    assert [held.message for held in dispatcher._scan(2)] == messages[:2]
    for message in messages[:2]:
        dispatcher.cancel(message)
    later = hold(owner, dispatcher, 2)
    assert [held.message for held in rest(dispatcher)] == messages[2:]
    assert scanned(dispatcher) == [*messages[2:], *later]


def test_all_that_is_left_ends(owner):
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 4)
    dispatcher._begin_scan()
    dispatcher._scan(2)
    for message in messages:
        dispatcher.cancel(message)
    assert rest(dispatcher) == []


def test_given_back_by_another_thread(owner):
    """It is in its bucket still, and held no more."""
    dispatcher, holds = start(owner)
    messages = hold(owner, dispatcher, 3)
    dispatcher._begin_scan()
    dispatcher._scan(1)
    thread = threading.Thread(target=holds["a"].context.continue_, args=(messages[1],))
    thread.start()
    thread.join()
    assert [held.message for held in rest(dispatcher, 1)] == messages[2:]


def test_abandoned_where_the_scan_is(uvloop_owner):
    owner = uvloop_owner
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 3)
    dispatcher._begin_scan()
    dispatcher._scan(1)
    gone = weakref.ref(messages[1])
    del messages[1]
    gc.collect()
    assert gone() is None or dispatcher.stats().held == 2
    assert [held.message for held in rest(dispatcher, 1)] == messages[1:]


def test_one_scan_at_a_time(owner):
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 4)
    dispatcher._begin_scan()
    dispatcher._scan(3)
    assert scanned(dispatcher, 2) == messages
    assert dispatcher._scan(1) is None


def test_only_what_is_old(owner):
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 3)
    assert scanned(dispatcher, older=3600.0) == []
    assert scanned(dispatcher, older=1e9) == []
    assert scanned(dispatcher, older=0.0) == messages


def test_wrong_values(owner):
    dispatcher, _ = start(owner)
    hold(owner, dispatcher, 3)
    for older in (-1.0, float("nan"), 2e9):
        with pytest.raises(ValueError, match="older is in seconds"):
            dispatcher._begin_scan(older)
    for steps in (0, -1, 2**20 + 1):
        with pytest.raises(ValueError, match="a portion is of 1 to"):
            dispatcher._scan(steps)
    raised = []

    def elsewhere():
        for call in (dispatcher._begin_scan, lambda: dispatcher._scan(1)):
            try:
                call()
            except mqcore.MqError as error:
                raised.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(raised) == 2


def test_before_and_after(owner):
    new = mqcore.Dispatcher.__new__(mqcore.Dispatcher)
    new._begin_scan()
    assert new._scan(1) is None
    dispatcher, _ = start(owner)
    hold(owner, dispatcher, 3)
    dispatcher._begin_scan()
    dispatcher._scan(1)
    dispatcher.close()
    assert dispatcher._scan(1) is None
    dispatcher._begin_scan()
    assert dispatcher._scan(1) is None


@pytest.mark.parametrize("seed", range(20))
def test_at_random(owner, seed):
    """Each message that is held from the beginning to the end of a scan is seen once; none is seen twice."""
    chance = random.Random(seed)
    config = {"a": {"hold_timeout": 100}, "b": {"hold_timeout": chance.choice([0, 100])}}
    dispatcher, holds = start(owner, "a", "b", config=config)
    alive = hold(owner, dispatcher, 200)
    seen: list[int] = []
    left = {id(message) for message in alive}
    kept = list(alive)
    dispatcher._begin_scan()
    while (portion := dispatcher._scan(chance.randrange(1, 30))) is not None:
        seen += (id(held.message) for held in portion)
        for _ in range(chance.randrange(20)):
            if alive:
                message = alive.pop(chance.randrange(len(alive)))
                left.discard(id(message))
                if chance.random() < 0.5:
                    dispatcher.cancel(message)
                else:
                    holds[message.holder].context.continue_(message)
        if chance.random() < 0.5:
            owner.turn()
        kept += hold(owner, dispatcher, chance.randrange(5))
    assert left <= set(seen)
    begun = {id(message) for message in kept[:200]}
    assert not [each for each in seen if each not in begun]
    assert len(seen) == len(set(seen))


def test_the_oldest_of_each_timeout_are_enough(owner):
    dispatcher, holds = start(owner, "a", "b", config={"a": {"hold_timeout": 5}, "b": {"hold_timeout": 50}})
    first, second = hold(owner, dispatcher, 5), hold(owner, dispatcher, 5)
    for message in first:
        holds["a"].context.continue_(message)
    owner.run_until(lambda: all(message.holder == "b" for message in first))
    for steps in (1, 3, 100):
        dispatcher._begin_scan(0.0, 2)
        assert {id(held.message) for held in rest(dispatcher, steps)} == set(map(id, first[:2] + second[:2]))
        dispatcher._begin_scan(0.0, 2)
        assert [held.message for held in rest(dispatcher, steps, "b")] == first[:2]


def test_what_matches(owner):
    dispatcher, _ = start(owner)
    messages = hold(owner, dispatcher, 10)
    dispatcher._begin_scan()
    assert [held.message for held in dispatcher._scan(100, match=lambda message: message in messages[3:5])] == messages[3:5]

    def cancels(message):
        return not dispatcher.cancel(message) or True

    dispatcher._begin_scan()
    assert dispatcher._scan(100, match=cancels) == []  # none of them is held any more

    def raises(message):
        raise LookupError(message)

    messages = hold(owner, dispatcher, 3)
    dispatcher._begin_scan()
    with pytest.raises(LookupError):
        dispatcher._scan(100, match=raises)
