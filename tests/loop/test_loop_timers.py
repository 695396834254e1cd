"""Timers: never early, in order, and stopped or reset at any moment."""

from __future__ import annotations

import logging
import random
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from loop_tools import PROLOGUE, borrow, python

import mqcore
import mqcore.loop._reactor


class Clock:
    """Timers that note when they fire, against the moment before which they must not."""

    def __init__(self, context):
        self.context = context
        self.early = []
        self.fired = 0

    def start(self, seconds):
        start = time.monotonic_ns()
        return self.context.start_timer(seconds, self.fire, start + int(float(seconds) * 1e9))

    def fire(self, due):
        self.fired += 1
        if (now := time.monotonic_ns()) < due:
            self.early.append(due - now)


# When they fire


def test_a_timer_fires_once(owner):
    _, context = borrow(owner)
    fired = []
    timer = context.start_timer(0.001, lambda *args: fired.append(args), 1, "two")
    assert isinstance(timer, mqcore.Timer)
    owner.turn()
    owner.run_until(lambda: fired)
    time.sleep(0.005)
    owner.turn()
    assert fired == [(1, "two")]


def test_a_timer_never_fires_before_its_start_returns(owner):
    _, context = borrow(owner)
    fired = []
    context.start_timer(0, fired.append, 1)
    time.sleep(0.002)
    assert not fired
    owner.turn()
    assert fired == [1]


@pytest.mark.parametrize("others", [0, 1])
def test_a_timer_of_no_time_fires_in_the_next_turn(owner, others):
    _, context = borrow(owner)
    fired = []
    for _ in range(others):
        context.start_timer(60, pytest.fail)
    for number in range(50):  # a clock of whole milliseconds would let one of them wait
        context.start_timer(0, fired.append, number)
        owner.turn()
        assert fired == list(range(number + 1))


@pytest.mark.parametrize("seconds", [0, -0.0, 5e-324, 1e-12, 1e-9, 0.0004, False, Fraction(1, 1000), Decimal("0.001")])
def test_seconds(owner, seconds):
    _, context = borrow(owner)
    clock = Clock(context)
    clock.start(seconds)
    owner.run_until(lambda: clock.fired)
    assert not clock.early


@pytest.mark.parametrize("seconds", [True, 86400, 3600 * 24 * 365, 2.0**31, 100 * 365 * 86400])
def test_seconds_that_are_far_off(owner, seconds):
    _, context = borrow(owner)
    timer = context.start_timer(seconds, pytest.fail, "fired")
    owner.turn()
    time.sleep(0.002)
    owner.turn()
    assert timer.stop() is True


@pytest.mark.parametrize("seconds", [-1, -1e-9, -5e-324, float("nan"), float("inf"), float("-inf"), 1e10, 1e300])
def test_seconds_that_are_refused(owner, seconds):
    _, context = borrow(owner)
    with pytest.raises(ValueError, match="seconds"):
        context.start_timer(seconds, pytest.fail)
    timer = context.start_timer(1, pytest.fail)
    with pytest.raises(ValueError, match="seconds"):
        timer.reset(seconds)
    assert timer.stop() is True  # a reset that is refused changes nothing


def test_an_int_beyond_every_float_is_refused(owner):
    _, context = borrow(owner)
    with pytest.raises(ValueError, match="seconds"):
        context.start_timer(10**400, pytest.fail)


@pytest.mark.parametrize("seconds", ["1", None, b"1", [], 1j])
def test_seconds_that_are_no_number(owner, seconds):
    _, context = borrow(owner)
    with pytest.raises(TypeError):
        context.start_timer(seconds, pytest.fail)
    timer = context.start_timer(1, pytest.fail)
    with pytest.raises(TypeError):
        timer.reset(seconds)
    assert timer.stop() is True


def test_seconds_whose_conversion_raises(owner):
    class Late:
        def __float__(self):
            raise LookupError("no time")

    _, context = borrow(owner)
    with pytest.raises(LookupError):
        context.start_timer(Late(), pytest.fail)


@pytest.mark.parametrize("method", ["start_timer", "reset"])
def test_seconds_whose_conversion_closes_the_dispatcher(owner, method):
    said = python(PROLOGUE + """
dispatcher, context = borrow()

class Closing:
    def __float__(self):
        dispatcher.close()
        return 0.0

timer = context.start_timer(100, print)
try:
    if sys.argv[2] == "reset":
        timer.reset(Closing())
    else:
        context.start_timer(Closing(), print)
except mqcore.DispatcherClosed:
    print("closed")
turn()
""", owner.name, method)
    assert said == "closed\n"


@pytest.mark.parametrize("callback", [None, 1, "callback", ()])
def test_a_callback_that_cannot_be_called(owner, callback):
    _, context = borrow(owner)
    with pytest.raises(TypeError, match="callable"):
        context.start_timer(1, callback)


def test_missing_arguments(owner):
    _, context = borrow(owner)
    with pytest.raises(TypeError):
        context.start_timer()
    with pytest.raises(TypeError):
        context.start_timer(1)


@pytest.mark.parametrize("kind", ["Timer", "Watcher"])
def test_timers_and_watchers_are_made_by_contexts_and_holds_alone(kind):
    """One that stands for nothing must not be used, let alone crash."""
    said = python("""
    import sys
    import mqcore
    try:
        thing = getattr(mqcore, sys.argv[1])()
        repr(thing)
        thing.stop()
    except Exception as error:
        print(type(error).__name__)
    """, kind)
    assert said in ("TypeError\n", "")


# Never early


def test_a_timer_after_a_callback_that_blocked(owner):
    """libuv counts from the loop's own time, which is that of before the callback."""
    _, context = borrow(owner)
    clock = Clock(context)

    def block():
        time.sleep(0.03)
        clock.start(0.05)
        clock.start(0.02)
        clock.start(0)

    context.start_timer(0.001, block)
    owner.run_until(lambda: clock.fired == 3)
    assert not clock.early


def test_a_timer_after_a_hook_that_blocked(owner):
    clocks = []

    def hook(context, message):
        clocks.append(clock := Clock(context))
        time.sleep(0.03)
        clock.start(0.05)
        return True

    dispatcher = owner.start({"slow": hook})
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    owner.run_until(lambda: clocks[0].fired)
    assert not clocks[0].early
    dispatcher.cancel(message)


def test_a_timer_reset_after_a_callback_that_blocked(owner):
    _, context = borrow(owner)
    due = []
    timer = context.start_timer(10, lambda: due.append(time.monotonic_ns() - due.pop()))

    def block():
        time.sleep(0.03)
        due.append(time.monotonic_ns() + 40_000_000)
        timer.reset(0.04)

    context.start_timer(0.001, block)
    owner.run_until(lambda: due)  # set by `block`
    owner.run_until(lambda: due and due[0] < 10**9)  # replaced by the timer: what is left over
    assert due[0] >= 0


def test_thousands_of_timers_are_never_early(owner):
    """With callbacks that block now and then, and start others."""
    chance = random.Random(7)
    _, context = borrow(owner)
    clock = Clock(context)
    started = 5000

    def block():
        nonlocal started
        time.sleep(chance.random() / 200)
        for _ in range(20):
            clock.start(chance.random() / 50)
            started += 1

    for _ in range(5000):
        clock.start(chance.random() / 5)
    for _ in range(30):
        context.start_timer(chance.random() / 5, block)
    owner.run_until(lambda: clock.fired == started == 5600)
    assert not clock.early


def test_a_deadline_is_never_early(owner):
    ended = []

    def hook(context, message):
        time.sleep(0.03)
        message.due = time.monotonic_ns() + 20_000_000
        return True

    class Message(mqcore.Message):
        due = 0

    def done(message, outcome):
        ended.append(time.monotonic_ns() - message.due)

    dispatcher = owner.start({"slow": hook}, hold_timeout=0.02)
    messages = [Message() for _ in range(3)]
    dispatcher.hook("mq_step").run_many(messages, done=done)
    owner.run_until(lambda: len(ended) == 3)
    assert min(ended) >= 0


# Many


def test_a_hundred_thousand_timers_fire_in_order(owner):
    _, context = borrow(owner)
    chance = random.Random(3)
    fired = []
    before = [0] * 100_000
    after = [0] * 100_000
    for number in range(100_000):
        delay = chance.randrange(400)
        before[number] = time.monotonic_ns() + delay * 1_000_000
        context.start_timer(delay / 1000, fired.append, number)
        after[number] = time.monotonic_ns() + delay * 1_000_000
    owner.run_until(lambda: len(fired) == 100_000, timeout=30)
    latest = 0
    for number in fired:  # to the millisecond, which is what libuv counts in
        assert after[number] >= latest - 1_000_000
        latest = max(latest, before[number])
    assert sorted(fired) == list(range(100_000))


def test_timers_that_are_started_alike_fire_in_the_order_they_were_started(owner):
    _, context = borrow(owner)
    fired = []
    for number in range(1000):
        context.start_timer(0.005, fired.append, number)
    owner.run_until(lambda: len(fired) == 1000)
    assert fired == list(range(1000))


def test_a_million_timers_started_and_stopped_are_one_handle(owner):
    _, context = borrow(owner)
    made, _ = mqcore.loop._reactor.handles()
    start_timer = context.start_timer
    for _ in range(1_000_000):
        start_timer(1.0, pytest.fail).stop()
    assert mqcore.loop._reactor.handles()[0] - made <= 1
    owner.turn()


def test_timers_that_fired_are_used_again(owner):
    _, context = borrow(owner)
    fired = []
    made, _ = mqcore.loop._reactor.handles()
    for _ in range(20):
        for _ in range(50):
            context.start_timer(0, fired.append, 1)
        owner.run_until(lambda: len(fired) == 50)
        fired.clear()
    assert mqcore.loop._reactor.handles()[0] - made <= 50


def test_timers_that_are_reset_forever_are_few_handles(owner):
    """A reset of a timer that is due takes another handle, and the first comes back."""
    _, context = borrow(owner)
    made, _ = mqcore.loop._reactor.handles()
    rounds = 0

    def first():
        nonlocal rounds
        rounds += 1
        second.reset(0)
        if rounds < 500:
            timer.reset(0)

    timer = context.start_timer(0, first)
    second = context.start_timer(0, list)
    owner.run_until(lambda: rounds == 500)
    assert mqcore.loop._reactor.handles()[0] - made <= 4
    second.stop()


def test_a_timer_that_starts_itself_does_not_starve_the_loop(owner):
    _, context = borrow(owner)
    rounds = 0
    fired = []

    def again():
        nonlocal rounds
        rounds += 1
        context.start_timer(0, again)
        if rounds == 1:
            context.start_timer(0.002, fired.append, 1)

    context.start_timer(0, again)
    owner.run_until(lambda: fired)
    assert rounds > 1


# Stop


def test_stop_before_it_fires(owner):
    _, context = borrow(owner)
    timer = context.start_timer(0.001, pytest.fail, "fired")
    assert timer.stop() is True
    assert timer.stop() is False
    time.sleep(0.003)
    owner.turn()
    assert timer.stop() is False


def test_stop_in_its_own_callback_and_after(owner):
    _, context = borrow(owner)
    said = []
    timer = context.start_timer(0.001, lambda: said.append(timer.stop()))
    owner.run_until(lambda: said)
    assert said == [False]
    assert timer.stop() is False


def test_stop_of_another_that_is_due_in_the_same_turn(owner):
    _, context = borrow(owner)
    said = []
    context.start_timer(0.001, lambda: said.append(other.stop()))
    other = context.start_timer(0.001, pytest.fail, "fired")
    time.sleep(0.005)
    owner.run_until(lambda: said)
    owner.turn()
    assert said == [True]


def test_stop_of_a_hundred_thousand_due_timers(owner):
    _, context = borrow(owner)
    stopped = []

    def stop_all():
        stopped.extend([timer.stop() for timer in timers])

    context.start_timer(0, stop_all)
    timers = [context.start_timer(0, pytest.fail, "fired") for _ in range(100_000)]
    time.sleep(0.002)
    owner.run_until(lambda: stopped)
    owner.turn()
    assert stopped == [True] * 100_000
    # Their handles are there again.
    made, _ = mqcore.loop._reactor.handles()
    for _ in range(100_000):
        context.start_timer(100, pytest.fail)
    assert mqcore.loop._reactor.handles()[0] == made


def test_each_timer_stops_the_next_but_one(owner):
    _, context = borrow(owner)
    fired = []

    def fire(number):
        fired.append(number)
        if number + 2 < 3000:
            timers[number + 2].stop()

    timers = [context.start_timer(0, fire, number) for number in range(3000)]
    time.sleep(0.002)
    owner.run_until(lambda: len(fired) >= 1500)
    owner.turn()
    assert fired == [number for number in range(3000) if number % 4 < 2]


# Reset


def test_reset_before_it_fires_later(owner):
    _, context = borrow(owner)
    fired = []
    timer = context.start_timer(0.001, lambda: fired.append(time.monotonic_ns()))
    due = time.monotonic_ns() + 30_000_000
    timer.reset(0.03)
    owner.run_until(lambda: fired)
    assert fired[0] >= due


def test_reset_before_it_fires_sooner(owner):
    _, context = borrow(owner)
    fired = []
    timer = context.start_timer(1000, fired.append, 1)
    timer.reset(0.001)
    owner.run_until(lambda: fired)
    assert timer.stop() is False


def test_reset_in_its_own_callback_and_after(owner):
    """A reset timer fires again."""
    _, context = borrow(owner)
    fired = []

    def fire(name):
        fired.append(name)
        if len(fired) < 5:
            timer.reset(0.0005)

    timer = context.start_timer(0.001, fire, "x")
    owner.run_until(lambda: len(fired) == 5)
    assert timer.stop() is False
    timer.reset(0)
    owner.run_until(lambda: len(fired) == 6)
    timer.reset(0.001)
    assert timer.stop() is True
    timer.reset(0)  # also one that was stopped
    owner.run_until(lambda: len(fired) == 7)
    assert fired == ["x"] * 7


def test_reset_of_another_that_is_due_in_the_same_turn(owner):
    _, context = borrow(owner)
    fired = []

    def postpone():
        other.reset(0.02)
        fired.append(time.monotonic_ns())

    context.start_timer(0.001, postpone)
    other = context.start_timer(0.001, lambda: fired.append(time.monotonic_ns()))
    time.sleep(0.005)
    owner.run_until(lambda: len(fired) == 2)
    assert fired[1] - fired[0] >= 19_000_000  # `postpone` looks at the clock a little after the reset
    owner.turn()
    assert len(fired) == 2


def test_reset_many_times_in_one_turn(owner):
    _, context = borrow(owner)
    fired = []

    def postpone():
        for _ in range(100):
            other.reset(0)
        other.stop()
        for _ in range(100):
            other.reset(0.001)

    context.start_timer(0, postpone)
    other = context.start_timer(0, fired.append, 1)
    time.sleep(0.002)
    owner.run_until(lambda: fired)
    time.sleep(0.003)
    owner.turn()
    assert fired == [1]


# Errors


def test_a_callback_that_raises_is_logged_and_the_loop_goes_on(owner, caplog):
    _, context = borrow(owner)
    fired = []
    context.start_timer(0, lambda: 1 / 0)
    context.start_timer(0, fired.append, 1)
    owner.run_until(lambda: fired)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mqcore.plugins.lender", logging.ERROR)
    assert "lender" in record.getMessage()
    assert record.exc_info[0] is ZeroDivisionError


def test_a_callback_with_wrong_arguments_is_logged(owner, caplog):
    _, context = borrow(owner)
    context.start_timer(0, lambda: None, "one too many")
    owner.run_until(lambda: caplog.records)
    assert caplog.records[0].exc_info[0] is TypeError


def test_a_timer_that_raised_can_be_reset(owner, caplog):
    _, context = borrow(owner)
    timer = context.start_timer(0, lambda: 1 / 0)
    owner.run_until(lambda: caplog.records)
    timer.reset(0)
    owner.run_until(lambda: len(caplog.records) == 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_leaves_through_the_loop(uvloop_owner, error):
    owner = uvloop_owner
    _, context = borrow(owner)
    fired = []

    def end():
        raise error

    context.start_timer(0, end)
    context.start_timer(0, fired.append, 1)
    with pytest.raises(error):
        owner.run_until(lambda: False)
    owner.run_until(lambda: fired)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_is_raised_by_close_on_pyuv(pyuv_owner, error):
    owner = pyuv_owner
    dispatcher, context = borrow(owner)

    def end():
        raise error

    context.start_timer(0, end)
    for _ in range(3):
        owner.loop.run(1)
    with pytest.raises(error):
        dispatcher.close()
    dispatcher.close()
