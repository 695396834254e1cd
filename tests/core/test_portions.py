"""No tick works through a list that may be of any length: what waits there is taken one by one, in portions of 1 ms."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
from pathlib import Path

import pytest
from cython_tools import build_driver
from loop_tools import borrow

import mqcore
from mqcore import READ, WRITE

MOST_TOLD = 4_096  # as in mqcore/loop/_poll
MOST_RENEWED = 256


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("portions"), Path(__file__).with_name("portions_driver.pyx"))


class Holds:
    """Takes every message; the next plugin is `Sees`."""

    def mq_context_initialize(self, context):
        self.context = context

    def mq_step(self, context, message):
        return mqcore.HOLD


class Sees:
    """Calls `see` with each message that comes by."""

    def mq_step(self, context, message):
        self.see(message)


def elsewhere(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join(30)


def held(owner, count):
    holds, sees = Holds(), Sees()
    dispatcher = owner.start({"1": holds, "2": sees})
    messages = [mqcore.Message() for _ in range(count)]
    dispatcher.hook("mq_step").run_many(messages)
    return dispatcher, holds.context, sees, messages


def test_what_another_thread_gave_back_is_collected_one_by_one(owner, driver):
    dispatcher, context, sees, messages = held(owner, 1_000)
    seen = []

    def see(message):
        seen.append((message, driver.given_back(dispatcher)))

    def give_back():
        for message in messages:
            context.continue_(message)

    sees.see = see
    elsewhere(give_back)
    assert driver.given_back(dispatcher) == 1_000
    assert dispatcher.stats().held == 0
    owner.run_until(lambda: len(seen) == 1_000)
    assert seen == [(message, 999 - number) for number, message in enumerate(messages)]


def test_what_is_given_back_later_comes_later_on_whichever_thread(owner, driver):
    dispatcher, context, sees, messages = held(owner, 30)
    seen = []
    sees.see = seen.append
    for number, message in enumerate(messages):
        if number % 10 == 5:
            elsewhere(context.continue_, message)
        else:
            context.continue_(message)
    assert driver.given_back(dispatcher) == 25  # what comes behind the first of another thread collects nothing
    owner.run_until(lambda: len(seen) == 30)
    assert seen == messages


@pytest.mark.parametrize("which", [0, 500, 999])
def test_cancel_of_one_that_another_thread_gave_back(owner, driver, which):
    dispatcher, context, sees, messages = held(owner, 1_000)
    seen = []
    sees.see = seen.append

    def give_back():
        for message in messages:
            context.continue_(message)

    elsewhere(give_back)
    assert dispatcher.cancel(messages[which])
    assert driver.given_back(dispatcher) == 999  # no other is looked at
    assert dispatcher.stats().cancelled == 1
    assert isinstance(messages[which].error, mqcore.Cancelled)
    owner.run_until(lambda: len(seen) == 999)
    assert seen == messages[:which] + messages[which + 1 :]


def test_cancel_of_one_that_another_thread_gave_back_which_is_run_again_at_once(owner, driver):
    dispatcher, context, sees, messages = held(owner, 10)
    seen, first = [], messages[0]
    sees.see = seen.append

    def give_back():
        for message in messages:
            context.continue_(message)

    elsewhere(give_back)
    assert dispatcher.cancel(first) and not dispatcher.cancel(first)
    assert dispatcher.hook("mq_step").run(first) is None
    elsewhere(context.complete, first)
    assert driver.given_back(dispatcher) == 10
    owner.run_until(lambda: len(seen) == 9 and dispatcher.stats().completed == 1)
    assert seen == messages[1:]


def test_what_another_thread_gave_back_is_not_too_late(owner):
    holds, sees = Holds(), Sees()
    dispatcher = owner.start({"1": holds, "2": sees}, hold_timeout=0.05)
    messages = [mqcore.Message() for _ in range(1_000)]
    seen = []
    sees.see = seen.append
    dispatcher.hook("mq_step").run_many(messages)

    def give_back():
        for message in messages[::2]:
            holds.context.continue_(message)

    elsewhere(give_back)
    threading.Event().wait(0.1)  # now all are due
    owner.run_until(lambda: dispatcher.stats().failed == 500)
    owner.run_until(lambda: len(seen) == 500)
    assert seen == messages[::2]


def test_the_watchers_of_a_lost_fd_are_told_in_portions(owner, driver):
    dispatcher, context = borrow(owner)
    ours, theirs = socket.socketpair()
    others = socket.socketpair()
    calls = []
    with ours, theirs, others[0], others[1]:
        watchers = [context.watch(ours, READ, lambda *args: calls.append(args)) for _ in range(4 * MOST_TOLD)]
        os.dup2(others[0].fileno(), ours.fileno())
        fresh = context.watch(ours, READ, lambda *args: calls.append(args))  # by this the others are lost
        assert driver.ready(dispatcher) == 0
        stopped = watchers[MOST_TOLD - 1 :: MOST_TOLD]
        assert all(watcher.stop() for watcher in stopped)
        assert not any(watcher.stop() for watcher in stopped)
        with pytest.raises(OSError, match="closed"):
            watchers[-2].events = READ
        told = [0]
        while told[-1] < len(watchers) - 4:
            owner.spin(wait=False)  # a tick, or two
            told.append(len(calls) + driver.ready(dispatcher))
        assert max(after - before for before, after in itertools.pairwise(told)) <= 2 * MOST_TOLD
        owner.run_until(lambda: len(calls) == len(watchers) - 4)
        owner.spin(wait=False)
        assert [(watcher, events) for watcher, events in calls] == [
            (watcher, 0) for watcher in watchers if watcher not in stopped
        ]
        assert all(watcher.error is not None and not watcher.stop() for watcher in watchers if watcher not in stopped)
        assert fresh.error is None
        assert fresh.stop()


def test_a_watcher_that_is_ready_when_its_fd_is_lost_is_told_that_alone(owner):
    _, context = borrow(owner)
    ours, theirs = socket.socketpair()
    others = socket.socketpair()
    calls = []

    def call(watcher, events):
        calls.append((watcher, events))
        if len(calls) == 1:  # the second one is ready by now
            os.dup2(others[0].fileno(), ours.fileno())
            context.watch(ours, READ, print).stop()

    with ours, theirs, others[0], others[1]:
        watchers = [context.watch(ours, READ, call) for _ in range(2)]
        theirs.send(b"x")
        owner.run_until(lambda: len(calls) >= 3)
        assert sorted(calls[1:], key=lambda call: watchers.index(call[0])) == [(watcher, 0) for watcher in watchers]
        assert calls[0] == (watchers[0], READ)


@pytest.mark.skipif(sys.platform != "linux", reason="the epoll is Linux's")
def test_a_new_epoll_is_filled_in_portions(owner, driver):
    """It is needed when a file that nobody watches any more cannot be taken out of the old one."""
    dispatcher, context = borrow(owner)
    calls, told = [], set()
    fds = [os.eventfd(0) for _ in range(3 * MOST_RENEWED)]
    watchers = [context.watch(fd, READ, lambda watcher, events: told.add(watcher)) for fd in fds]
    ours, theirs = os.pipe()
    unwanted = context.watch(ours, READ, lambda *args: calls.append(args))
    owner.turn()
    double = os.dup(ours)
    os.close(ours)
    unwanted.stop()
    os.write(theirs, b"x")  # it comes up, by the number of a file that is not there
    left = [0]
    while len(left) < 50 and (left[-1] or not any(left)):
        owner.spin(wait=False)
        left.append(driver.renewing(dispatcher))
        if left[-1] > MOST_RENEWED:
            watchers.pop(len(watchers) // 2).stop()
            watchers.pop().events = READ | WRITE
    assert any(left)
    assert not calls
    told.clear()
    for fd in fds:
        os.eventfd_write(fd, 1)
    owner.run_until(lambda: told >= set(watchers))
    for watcher in [*watchers, *told]:
        watcher.stop()
    for fd in (*fds, theirs, double):
        os.close(fd)


def test_close_with_a_lost_fd(owner):
    dispatcher, context = borrow(owner)
    ours, theirs = socket.socketpair()
    calls = []
    with ours, theirs:
        watchers = [context.watch(ours, READ, lambda *args: calls.append(args)) for _ in range(2 * MOST_TOLD)]
        os.dup2(theirs.fileno(), ours.fileno())
        context.watch(ours, READ, print)
        dispatcher.close()
        assert not any(watcher.stop() for watcher in watchers)
    owner.turn()
    assert calls == []


def test_the_sweep_looks_at_no_context_that_is_in_use(owner, driver):
    cleaned = []

    class Cleaned(Sees):
        see = staticmethod(lambda message: None)

        def __init__(self, number):
            self.number = number

        def mq_context_cleanup(self, context):
            cleaned.append(self.number)

    holds = Holds()
    dispatcher = owner.start({"0": holds} | {f"1{number:03}": Cleaned(number) for number in range(500)})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message)  # it keeps them all
    for number in range(500):
        dispatcher.plugins.remove(f"1{number:03}")
    owner.spin(wait=False)
    assert (driver.unused(dispatcher), cleaned) == (0, [])
    holds.context.continue_(message)
    owner.run_until(lambda: len(cleaned) == 500)
    assert sorted(cleaned) == list(range(500))


def test_close_while_a_replaced_plugin_is_in_use(owner):
    cleaned = []

    class Cleaned(Holds):
        def mq_context_cleanup(self, context):
            cleaned.append(context.plugin.name)

    dispatcher = owner.start({"a": Cleaned(), "b": Cleaned(), "c": Cleaned()})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message)
    dispatcher.plugins.remove("a")
    dispatcher.plugins.remove("b")
    dispatcher.close()
    assert sorted(cleaned) == ["a", "b", "c"]
    assert isinstance(message.error, mqcore.DispatcherClosed)
