"""However much is due at once, a tick takes its portion of it: 1 ms for each phase, and the clock is read every 16th entry."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from loop_tools import borrow

import mqcore
from mqcore import READ

COUNT = 2_000
CALL = 20e-6
MOST = round(0.001 / CALL) + 2 * 16  # calls in one tick


class Ticks:
    """How many calls came in one iteration of the loop."""

    def __init__(self, owner):
        self.owner = owner
        self.calls = 0
        self.longest = 0

    def call(self, *args):
        self.calls += 1
        end = time.perf_counter() + CALL
        while time.perf_counter() < end:
            pass

    def run(self, count):
        """Spin until all were called."""
        end = time.monotonic() + 30
        while self.calls < count:
            assert time.monotonic() < end
            before = self.calls
            self.owner.spin(wait=False)
            self.longest = max(self.longest, self.calls - before)


def test_due_timers(owner):
    _, context = borrow(owner)
    ticks = Ticks(owner)
    for _ in range(COUNT):
        context.start_timer(0.001, ticks.call)
    time.sleep(0.005)
    ticks.run(COUNT)
    assert ticks.calls == COUNT
    assert ticks.longest <= 2 * MOST


def test_ready_watchers(owner):
    _, context = borrow(owner)
    ticks = Ticks(owner)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watchers = []

        def call(watcher, events):
            watcher.stop()
            ticks.call()

        watchers += [context.watch(ours, READ, call) for _ in range(COUNT)]
        theirs.send(b"x")
        ticks.run(COUNT)
        assert ticks.calls == COUNT
        assert ticks.longest <= 2 * MOST


def test_very_many_watchers_of_one_fd(owner):
    """They are told in portions: each is called again and again, also when others are stopped meanwhile."""
    _, context = borrow(owner)
    calls = [0] * 10_000
    ours, theirs = socket.socketpair()

    def call(watcher, events, number):
        calls[number] += 1
        if number % 3 == 1:
            watchers[number - 1].stop()
            watcher.stop()
            watchers[(number * 7) % len(calls) // 3 * 3].stop()

    with ours, theirs:
        watchers = [context.watch(ours, READ, call, number) for number in range(len(calls))]
        theirs.send(b"x")
        owner.run_until(lambda: min(calls[2::3]) > 2)
        assert set(calls[1::3]) == {1}
        ours.recv(1)
        assert all(watchers[number].stop() for number in range(2, len(calls), 3))
        assert not any(watchers[number].stop() for number in range(1, len(calls), 3))


def test_timers_of_holds_that_are_over(owner):
    """They are stopped and dropped in portions, where another thread ended their holds."""
    ticks = Ticks(owner)

    class Argument:
        def __del__(self):
            ticks.call()

    def hook(context, message):
        hold = context.hold(message)
        hold.start_timer(1000, print, Argument())
        holds.append(hold)
        return hold

    holds = []
    dispatcher = owner.start({"a": hook})
    messages = [mqcore.Message() for _ in range(COUNT)]
    dispatcher.hook("mq_step").run_many(messages)

    def give_back():
        for hold in holds:
            hold.complete()

    thread = threading.Thread(target=give_back)
    thread.start()
    thread.join(30)
    assert ticks.calls == 0  # no finalizer runs in a give-back of another thread
    holds.clear()
    ticks.run(COUNT)
    assert ticks.calls == COUNT
    assert ticks.longest <= 2 * MOST


@pytest.mark.parametrize("count", [20_000])
def test_very_many_timers_move_in_portions(owner, count):
    """All in one slot of the wheel, far off: its turn takes several ticks, and none is lost."""
    _, context = borrow(owner)
    fired = []
    for _ in range(count):
        context.start_timer(0.07, fired.append, 1)
    owner.run_until(lambda: len(fired) == count)


def test_many_fds_are_stopped_with_their_hold(owner):
    pipes = [os.pipe() for _ in range(100)]

    def hook(context, message):
        hold = context.hold(message)
        for reads, _ in pipes:
            hold.watch(reads, READ, print)
        holds.append(hold)
        return hold

    holds = []
    dispatcher = owner.start({"a": hook})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message)
    holds[0].complete()
    for pair in pipes:
        for end in pair:
            os.close(end)
    owner.turn()
    owner.turn()
