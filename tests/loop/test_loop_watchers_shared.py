"""Watchers that share an fd, or a loop with asyncio."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys

import pytest
from loop_tools import PROLOGUE, Log, borrow, python, reset_connection, settle

import mqcore
import mqcore.loop._reactor
from mqcore import READ, WRITE

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libuv polls each fd, and only one may do so")

# Several watchers on one fd


def test_two_watchers_on_one_fd(owner, socket_pair):
    """libuv allows one poll for each fd: they share it, and each gets its own events."""
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    made, _ = mqcore.loop._reactor.handles()
    reader = context.watch(ours, READ, log.note, "read")
    writer = context.watch(ours.fileno(), WRITE, log.note, "write")
    assert mqcore.loop._reactor.handles()[0] == made + 1
    assert (reader.events, writer.events) == (READ, WRITE)
    owner.run_until(lambda: log)
    assert set(log) == {("write", WRITE)}
    writer.stop()
    log.clear()
    settle(owner)
    assert not log
    theirs.send(b"x")
    owner.run_until(lambda: log)
    assert set(log) == {("read", READ)}
    reader.stop()
    log.clear()
    settle(owner)
    assert not log


def test_both_are_called_for_the_same_event(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    for name in "abc":
        context.watch(ours, READ, log.note, name)
    theirs.send(b"x")
    owner.run_until(lambda: log)
    assert log[:3] == [("a", READ), ("b", READ), ("c", READ)]


def test_watchers_of_two_plugins_on_one_fd(owner, socket_pair):
    ours, theirs = socket_pair
    contexts = {}

    class Plugin:
        def __init__(self, name):
            self.name = name

        def mq_context_initialize(self, context):
            contexts[self.name] = context

    owner.start({"a": Plugin("a"), "b": Plugin("b")})
    log = Log()
    watchers = [contexts[name].watch(ours, READ, log.note, name) for name in "ab"]
    theirs.send(b"x")
    owner.run_until(lambda: {("a", READ), ("b", READ)} <= set(log))
    assert watchers[0].stop()
    log.clear()
    owner.run_until(lambda: log)
    assert set(log) == {("b", READ)}


def test_events_are_changed(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    watcher = context.watch(ours, READ, log.note)
    settle(owner)
    watcher.events = WRITE
    assert watcher.events == WRITE
    owner.run_until(lambda: log)
    assert set(log) == {(None, WRITE)}
    theirs.send(b"x")
    watcher.events = READ | WRITE
    log.clear()
    owner.run_until(lambda: (None, READ | WRITE) in log)  # what was on its way may come first
    watcher.events = READ
    log.clear()
    owner.run_until(lambda: log)
    assert set(log) == {(None, READ)}
    ours.recv(10)
    settle(owner)
    log.clear()
    settle(owner)
    assert not log


def test_events_are_changed_in_the_callback(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()

    def turn_about(watcher, events):
        log.append(events)
        watcher.events = READ if events == WRITE else WRITE

    theirs.send(b"x")
    context.watch(ours, WRITE, turn_about)
    owner.run_until(lambda: len(log) >= 6)
    assert log[:6] == [WRITE, READ] * 3


def test_events_of_another_are_changed_in_the_callback(owner, socket_pair):
    """The other one no longer waits for what came in this turn."""
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()

    def first(watcher, events):
        log.append(("first", events))
        other.events = WRITE
        watcher.stop()

    theirs.send(b"x")
    context.watch(ours, READ, first)
    other = context.watch(ours, READ, log.note, "other")
    owner.run_until(lambda: len(log) >= 2)
    assert log[0] == ("first", READ)
    assert set(log[1:]) == {("other", WRITE)}


def test_stop_inside_its_own_callback(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    said = []

    def once(watcher, events):
        said.extend([watcher.stop(), watcher.stop()])

    theirs.send(b"x")
    watcher = context.watch(ours, READ, once)
    owner.run_until(lambda: said)
    settle(owner)
    assert said == [True, False]
    assert watcher.stop() is False
    assert watcher.fd == ours.fileno() and watcher.events == READ


@pytest.mark.parametrize("count", [2, 3, 10])
def test_stop_of_all_in_the_first_callback(owner, socket_pair, count):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    said = []

    def stop_all(watcher, events):
        said.append([each.stop() for each in watchers])

    theirs.send(b"x")
    watchers = [context.watch(ours, READ, stop_all) for _ in range(count)]
    owner.run_until(lambda: said)
    settle(owner)
    assert said == [[True] * count]


def test_stop_of_the_one_before_in_the_callback_of_the_next(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()

    def stop_first(watcher, events):
        log.append(("second", events))
        first.stop()

    theirs.send(b"x")
    first = context.watch(ours, READ, log.note, "first")
    context.watch(ours, READ, stop_first)
    context.watch(ours, READ, log.note, "third")
    owner.run_until(lambda: len(log) >= 6)
    assert log[:3] == [("first", READ), ("second", READ), ("third", READ)]
    assert ("first", READ) not in log[3:]


def test_stop_of_the_watcher_of_another_fd_that_is_ready_in_the_same_turn(owner):
    _, context = borrow(owner)
    pipes = [os.pipe() for _ in range(50)]
    calls = []

    def stop_all(watcher, events):
        calls.append(watcher.fd)
        for each in watchers:
            each.stop()

    watchers = [context.watch(reader, READ, stop_all) for reader, _ in pipes]
    for _, writer in pipes:
        os.write(writer, b"x")
    owner.run_until(lambda: calls)
    settle(owner)
    assert len(calls) == 1
    for fd in sum(pipes, ()):
        os.close(fd)


def test_a_watcher_added_in_a_callback(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()

    def add(watcher, events):
        log.append(("first", events))
        if len(log) == 1:
            context.watch(ours, READ, log.note, "second")

    theirs.send(b"x")
    context.watch(ours, READ, add)
    owner.run_until(lambda: ("second", READ) in log)
    assert log[:2] == [("first", READ), ("first", READ)]  # the new one waits for the next turn


def test_stop_and_watch_again_at_once(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    theirs.send(b"x")
    for _ in range(100):
        context.watch(ours, READ, pytest.fail).stop()
    watcher = context.watch(ours, READ, log.note)
    owner.run_until(lambda: log)
    for _ in range(100):
        watcher.stop()
        watcher = context.watch(ours, READ, log.note)
    log.clear()
    owner.run_until(lambda: log)


def test_setting_events_of_a_stopped_watcher(owner, socket_pair):
    _, context = borrow(owner)
    watcher = context.watch(socket_pair[0], READ, print)
    watcher.stop()
    with pytest.raises(mqcore.MqError, match="stopped"):
        watcher.events = WRITE
    assert watcher.events == READ


def test_fd_and_error_cannot_be_set(owner, socket_pair):
    _, context = borrow(owner)
    watcher = context.watch(socket_pair[0], READ, print)
    for name in ("fd", "error"):
        with pytest.raises(AttributeError):
            setattr(watcher, name, 1)


def test_a_repr(owner, socket_pair):
    _, context = borrow(owner)
    watcher = context.watch(socket_pair[0], READ, print)
    assert f"fd={socket_pair[0].fileno()}" in repr(watcher) and "active" in repr(watcher)
    watcher.stop()
    assert "stopped" in repr(watcher)


# Duplicates


def test_an_fd_and_its_duplicate(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    with ours.dup() as double:
        one = context.watch(ours, READ, log.note, "one")
        two = context.watch(double, READ, log.note, "two")
        theirs.send(b"x")
        owner.run_until(lambda: {("one", READ), ("two", READ)} <= set(log))
        two.stop()
    log.clear()
    owner.run_until(lambda: log)
    assert set(log) == {("one", READ)}
    one.stop()


def test_a_duplicate_of_what_asyncio_reads(uvloop_owner, socket_pair):
    ours, theirs = socket_pair
    loop = uvloop_owner.loop
    _, context = borrow(uvloop_owner)
    log = Log()
    loop.add_reader(ours, log.append, ("asyncio", READ))
    with ours.dup() as double:
        watcher = context.watch(double, READ, log.note, "ours")
        theirs.send(b"x")
        uvloop_owner.run_until(lambda: {("asyncio", READ), ("ours", READ)} <= set(log))
        watcher.stop()
    loop.remove_reader(ours)


# Beside asyncio


@pytest.mark.parametrize("kind", ["reader", "writer"])
def test_an_fd_that_asyncio_polls(uvloop_owner, socket_pair, kind):
    ours, theirs = socket_pair
    loop = uvloop_owner.loop
    _, context = borrow(uvloop_owner)
    seen = []
    getattr(loop, f"add_{kind}")(ours, seen.append, 1)
    made = mqcore.loop._reactor.handles()
    with pytest.raises(OSError, match=f"fd {ours.fileno()} is polled already by asyncio") as caught:
        context.watch(ours, READ, print)
    assert caught.value.errno == errno.EEXIST
    assert mqcore.loop._reactor.handles()[0] - made[0] in (0, 1)
    theirs.send(b"x")
    uvloop_owner.run_until(lambda: seen)  # asyncio's own goes on
    getattr(loop, f"remove_{kind}")(ours)


def test_an_fd_that_asyncio_polled(uvloop_owner, socket_pair):
    ours, theirs = socket_pair
    loop = uvloop_owner.loop
    _, context = borrow(uvloop_owner)
    log = Log()
    for _ in range(3):
        loop.add_reader(ours, pytest.fail)
        loop.remove_reader(ours)
        watcher = context.watch(ours, READ, log.note)
        theirs.send(b"x")
        uvloop_owner.run_until(lambda: log)
        ours.recv(10)
        watcher.stop()
        log.clear()


@linux
def test_asyncio_polls_an_fd_that_we_watch(uvloop_owner, socket_pair):
    """asyncio cannot know: both get the events."""
    ours, theirs = socket_pair
    loop = uvloop_owner.loop
    _, context = borrow(uvloop_owner)
    log = Log()
    watcher = context.watch(ours, READ, log.note, "ours")
    loop.add_reader(ours, log.append, "asyncio")
    theirs.send(b"x")
    uvloop_owner.run_until(lambda: {"asyncio", ("ours", READ)} <= set(log))
    watcher.stop()
    log.clear()
    uvloop_owner.run_until(lambda: log)
    assert set(log) == {"asyncio"}
    loop.remove_reader(ours)


@pytest.mark.parametrize("state", ["reading", "paused"])
def test_an_fd_of_a_transport(uvloop_owner, state):
    """A paused transport polls nothing, so libuv knows of it only when both want to."""
    owner = uvloop_owner
    _, context = borrow(owner)
    ours, theirs = socket.socketpair()
    received = []

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            received.append(data)

    async def connect():
        transport, _ = await owner.loop.create_connection(Protocol, sock=ours)
        return transport

    transport = owner.run(connect())
    owner.turn()
    fd = transport.get_extra_info("socket").fileno()
    if state == "reading":
        with pytest.raises(OSError, match="polled already by asyncio") as caught:
            context.watch(fd, READ, print)
        assert caught.value.errno == errno.EEXIST
    else:
        transport.pause_reading()
        log = Log()
        watcher = context.watch(fd, READ, log.note)
        theirs.send(b"x")
        owner.run_until(lambda: log)
        watcher.stop()
        transport.resume_reading()
    theirs.send(b"y")
    owner.run_until(lambda: received)
    transport.abort()
    owner.turn()
    theirs.close()


def test_the_fd_stays_watched_after_an_error_condition(uvloop_owner):
    """libuv stops a poll of its own on an error condition."""
    owner = uvloop_owner
    _, context = borrow(owner)
    seen = []
    ours = reset_connection()

    def ready(watcher, events):
        seen.append(events)

    watcher = context.watch(ours, READ, ready)
    owner.run_until(lambda: len(seen) > 1)
    assert set(seen) == {READ}
    assert watcher.stop() is True
    ours.close()


@pytest.mark.parametrize("moment", ["before the loop polls", "after"])
def test_what_another_on_the_loop_watches(owner, moment):
    """The second is told, and the first goes on."""
    other = "add_reader" if owner.name == "uvloop" else "pyuv.Poll"
    said = python(PROLOGUE + """
_, context = borrow()
ours, theirs = socket.socketpair()
ours.setblocking(False)
log = []
if sys.argv[2] == "add_reader":
    loop.add_reader(ours, log.append, "other")
else:
    poll = pyuv.Poll(loop, ours.fileno())
    poll.start(pyuv.UV_READABLE, lambda *args: log.append("other"))
if sys.argv[3] == "after":
    turn()
try:
    context.watch(ours, READ, lambda watcher, events: log.append("ours"))
except OSError as error:
    print(errno.errorcode[error.errno])
theirs.send(b"x")
turn()
print(*set(log))
sys.stdout.flush()
os._exit(0)
""", owner.name, other, moment)
    assert said.split() == ["EEXIST", "other"]


@linux
def test_two_dispatchers_watch_one_fd(owner, socket_pair):
    ours, theirs = socket_pair
    log = Log()
    watchers = [borrow(owner)[1].watch(ours, READ, log.note, name) for name in ("first", "second")]
    theirs.send(b"x")
    owner.run_until(lambda: {("first", READ), ("second", READ)} <= set(log))
    for watcher in watchers:
        watcher.stop()


def test_two_dispatchers_watch_one_fd_in_turn(owner, socket_pair):
    ours, theirs = socket_pair
    contexts = [borrow(owner)[1] for _ in range(2)]
    theirs.send(b"x")
    for _ in range(3):
        for context in contexts:
            log = Log()
            watcher = context.watch(ours, READ, log.note)
            owner.run_until(lambda log=log: log)
            watcher.stop()
