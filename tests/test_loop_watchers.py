"""Watchers: several on one fd, changed and stopped at any moment, beside asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import gc
import logging
import os
import random
import resource
import select
import socket
import struct
import threading
import weakref

import pytest
from loop_tools import PROLOGUE, borrow, python

import mqcore
import mqcore._loop
from mqcore import READ, WRITE


class Log(list):
    """Notes every call of a watcher: its name and the events."""

    def note(self, watcher, events, name=None):
        self.append((name, events))


def settle(owner):
    """Enough turns for all that is ready to be told."""
    owner.turn()
    owner.turn()


# What is told


def test_read(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    seen = []

    def read(watcher, events, *args):
        seen.append((watcher, events, args, ours.recv(100)))

    watcher = context.watch(ours, READ, read, "extra", 2)
    assert isinstance(watcher, mqcore.Watcher)
    assert (watcher.fd, watcher.events, watcher.error) == (ours.fileno(), READ, None)
    settle(owner)
    assert not seen
    theirs.send(b"hello")
    owner.run_until(lambda: seen)
    assert seen == [(watcher, READ, ("extra", 2), b"hello")]
    settle(owner)
    assert len(seen) == 1


def test_write(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    while True:
        try:
            ours.send(b"x" * 65536)
        except BlockingIOError:
            break
    watcher = context.watch(ours, WRITE, log.note)
    settle(owner)
    assert not log  # full
    received = 0
    while not log:
        with contextlib.suppress(BlockingIOError):
            received += len(theirs.recv(1 << 20))
        owner.spin(wait=True)
    assert log[0] == (None, WRITE) and received
    watcher.stop()


def test_both_events_at_once(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    theirs.send(b"x")
    context.watch(ours, READ | WRITE, log.note)
    owner.run_until(lambda: log)
    assert log[0] == (None, READ | WRITE)


def test_it_is_level_triggered(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    context.watch(ours, READ, log.note)
    theirs.send(b"never read")
    owner.run_until(lambda: len(log) >= 3)


def test_the_callback_is_never_called_by_watch_itself(owner, socket_pair):
    ours, theirs = socket_pair
    theirs.send(b"x")
    _, context = borrow(owner)
    log = Log()
    context.watch(ours, READ, log.note)
    assert not log


def test_watch_makes_the_fd_non_blocking(owner):
    _, context = borrow(owner)
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, True)
        watcher = context.watch(reader, READ, print)
        assert not os.get_blocking(reader)
        watcher.stop()
    finally:
        os.close(reader)
        os.close(writer)


def test_other_kinds_of_files(owner, tmp_path):
    _, context = borrow(owner)
    kept = []
    for kind in ("pipe", "fifo", "tty", "listener", "datagram", "poll"):
        kept += (fds := open_kind(kind, tmp_path))
        log = Log()
        watcher = context.watch(fds[0], READ, log.note, kind)
        settle(owner)
        assert not log, kind
        make_readable(kind, fds)
        owner.run_until(lambda log=log: log)
        assert log[0] == (kind, READ)
        watcher.stop()
    for each in kept:
        os.close(each) if isinstance(each, int) else each.close()


def open_kind(kind, folder):
    """The file to watch, and what makes it readable."""
    if kind == "pipe":
        return os.pipe()
    if kind == "fifo":
        os.mkfifo(folder / "fifo")
        reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        return reader, os.open(folder / "fifo", os.O_WRONLY)
    if kind == "tty":
        return tuple(os.openpty())
    if kind == "poll":
        reader, writer = os.pipe()
        poll = select.epoll()
        poll.register(reader, select.EPOLLIN)
        return poll, writer, reader
    if kind == "listener":
        listener = socket.create_server(("127.0.0.1", 0))
        return listener, socket.socket()
    receiver = socket.socket(type=socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    return receiver, socket.socket(type=socket.SOCK_DGRAM)


def make_readable(kind, fds):
    if kind == "listener":
        fds[1].connect(fds[0].getsockname())
    elif kind == "datagram":
        fds[1].sendto(b"x", fds[0].getsockname())
    else:
        os.write(fds[1], b"x\n")


# Errors of the other side


def test_peer_hangup(owner):
    _, context = borrow(owner)
    ours, theirs = socket.socketpair()
    log = Log()
    with ours:
        watcher = context.watch(ours, READ | WRITE, log.note)
        owner.run_until(lambda: log)
        log.clear()
        theirs.close()
        owner.run_until(lambda: any(events & READ for _, events in log))
        assert ours.recv(10) == b""
        assert watcher.error is None
        watcher.stop()


def test_the_writer_of_a_pipe_hangs_up(owner):
    """No data and no writer: nothing but a hangup, which a read meets as the end of the file."""
    _, context = borrow(owner)
    log = Log()
    reader, writer = os.pipe()
    watcher = context.watch(reader, READ, log.note)
    settle(owner)
    os.close(writer)
    owner.run_until(lambda: log)
    assert log[0] == (None, READ)
    assert os.read(reader, 10) == b""
    watcher.stop()
    os.close(reader)


def test_the_reader_of_a_pipe_hangs_up(owner):
    """An error condition: all that was asked for is ready, and a write meets the error."""
    _, context = borrow(owner)
    log = Log()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 65536)
        except BlockingIOError:
            break
    watcher = context.watch(writer, WRITE, log.note)
    settle(owner)
    assert not log
    os.close(reader)
    owner.run_until(lambda: len(log) >= 2)  # level-triggered too
    assert log[0] == (None, WRITE)
    assert watcher.error is None
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    watcher.stop()
    os.close(writer)


@pytest.mark.parametrize("events", [READ, WRITE, READ | WRITE])
def test_a_connection_that_is_refused(owner, events):
    """All the events that were asked for; the error is in the socket."""
    _, context = borrow(owner)
    seen = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()  # bound, and nobody listens
        with socket.socket() as ours:
            ours.setblocking(False)
            code = ours.connect_ex(address)
            assert code in (errno.EINPROGRESS, errno.ECONNREFUSED)

            def ready(watcher, events):
                seen.append((events, code or 0, ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
                watcher.stop()

            watcher = context.watch(ours, events, ready)
            owner.run_until(lambda: seen)
            assert seen[0][0] == events
            assert errno.ECONNREFUSED in seen[0][1:]
            assert watcher.error is None


def reset_connection():
    """Our end of a connection that the other one has reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    return ours


@pytest.mark.parametrize("events", [READ, WRITE, READ | WRITE])
def test_a_connection_that_is_reset(owner, events):
    _, context = borrow(owner)
    seen = []
    ours = reset_connection()

    def ready(watcher, events):
        seen.append((events, ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))

    watcher = context.watch(ours, events, ready)
    owner.run_until(lambda: len(seen) >= 2)  # goes on, until somebody stops it
    assert seen[0] == (events, errno.ECONNRESET)
    watcher.stop()
    ours.close()


def test_two_watchers_of_a_socket_with_an_error(owner):
    """Each gets what it asked for; either may stop or change in its callback."""
    _, context = borrow(owner)
    log = Log()
    with socket.socket(type=socket.SOCK_DGRAM) as free, socket.socket(type=socket.SOCK_DGRAM) as ours:
        free.bind(("127.0.0.1", 0))
        ours.connect(free.getsockname())
        free.close()
        ours.setblocking(False)
        ours.send(b"to nobody")  # the error comes back over the network

        def write(watcher, events):
            log.append(("write", events))
            watcher.stop()

        reader = context.watch(ours, READ, log.note, "read")
        context.watch(ours, WRITE, write)
        owner.run_until(lambda: ("read", READ) in log and ("write", WRITE) in log)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        settle(owner)
        log.clear()
        settle(owner)
        assert not log  # the error was taken
        reader.events = WRITE
        owner.run_until(lambda: log)
        assert log[0] == ("read", WRITE)
        reader.stop()


# What is refused


@pytest.mark.parametrize("events", [0, 4, -1, 7, 1 << 20, 1 << 40, -(1 << 40)])
def test_events_that_are_refused(owner, socket_pair, events):
    _, context = borrow(owner)
    with pytest.raises(ValueError, match="events"):
        context.watch(socket_pair[0], events, print)
    watcher = context.watch(socket_pair[0], READ, print)
    with pytest.raises(ValueError, match="events"):
        watcher.events = events
    assert watcher.events == READ
    assert watcher.stop() is True


@pytest.mark.parametrize("events", ["x", None, 1.0, b"1", [1]])
def test_events_that_are_no_number(owner, socket_pair, events):
    _, context = borrow(owner)
    with pytest.raises(TypeError):
        context.watch(socket_pair[0], events, print)
    watcher = context.watch(socket_pair[0], READ, print)
    with pytest.raises(TypeError):
        watcher.events = events
    with pytest.raises((TypeError, AttributeError, NotImplementedError)):
        del watcher.events
    assert watcher.stop() is True


@pytest.mark.parametrize("callback", [None, 1, "callback"])
def test_a_callback_that_cannot_be_called(owner, socket_pair, callback):
    _, context = borrow(owner)
    with pytest.raises(TypeError, match="callable"):
        context.watch(socket_pair[0], READ, callback)


@pytest.mark.parametrize("fd", [None, "1", 1.5, object(), b"1"])
def test_an_fd_that_is_none(owner, fd):
    _, context = borrow(owner)
    with pytest.raises(TypeError):
        context.watch(fd, READ, print)


@pytest.mark.parametrize("fd", [-1, -(2**31)])
def test_a_negative_fd(owner, fd):
    _, context = borrow(owner)
    with pytest.raises(ValueError, match="negative"):
        context.watch(fd, READ, print)


def test_a_closed_socket(owner):
    _, context = borrow(owner)
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="negative"):
        context.watch(closed, READ, print)  # its fileno() is -1


def test_an_fd_that_is_closed(owner):
    _, context = borrow(owner)
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    for fd in (reader, writer, 2**31 - 1):
        with pytest.raises(OSError, match=f"fd {fd} is not open") as caught:
            context.watch(fd, READ, print)
        assert caught.value.errno == errno.EBADF
    settle(owner)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_cannot_be_polled(owner, tmp_path, kind):
    _, context = borrow(owner)
    path = tmp_path
    if kind == "file":
        path = tmp_path / "file"
        path.touch()
    fd = os.open(path, os.O_RDONLY)
    made = mqcore._loop.handles()
    with pytest.raises(PermissionError, match=f"fd {fd} cannot be watched: a file or folder"):
        context.watch(fd, READ, print)
    assert mqcore._loop.handles() == made
    os.close(fd)
    settle(owner)


def test_an_object_with_fileno(owner, socket_pair):
    _, context = borrow(owner)

    class Wrapper:
        def __init__(self, number):
            self.number = number

        def fileno(self):
            return self.number

    watcher = context.watch(Wrapper(socket_pair[0].fileno()), READ, print)
    assert watcher.fd == socket_pair[0].fileno()
    for number in ("1", None, -1):
        with pytest.raises((TypeError, ValueError)):
            context.watch(Wrapper(number), READ, print)


def test_a_fileno_that_raises(owner):
    _, context = borrow(owner)

    class Trouble:
        def fileno(self):
            raise LookupError("no number")

    with pytest.raises(LookupError):
        context.watch(Trouble(), READ, print)


@pytest.mark.parametrize("action", ["dispatcher.close()", "watcher.stop()"])
def test_a_fileno_that_closes_the_dispatcher_or_stops_another_watcher(owner, action):
    said = python(PROLOGUE + """
dispatcher, context = borrow()
reader, writer = os.pipe()
watcher = context.watch(reader, READ, print)

class Meddling:
    def fileno(self):
        exec(sys.argv[2], globals())
        return reader

try:
    context.watch(Meddling(), READ, print)
    print("watches")
except mqcore.DispatcherClosed:
    print("closed")
turn()
""", owner.name, action)
    assert said == ("closed\n" if "close" in action else "watches\n")


def test_events_of_an_enum(owner, socket_pair):
    class Events(enum.IntFlag):
        READ = READ
        WRITE = WRITE

    _, context = borrow(owner)
    watcher = context.watch(socket_pair[0], Events.READ | Events.WRITE, print)
    assert watcher.events == READ | WRITE
    watcher.events = Events.READ
    assert watcher.events == READ


def test_missing_arguments(owner, socket_pair):
    _, context = borrow(owner)
    with pytest.raises(TypeError):
        context.watch(socket_pair[0])
    with pytest.raises(TypeError):
        context.watch(socket_pair[0], READ)


# Several watchers on one fd


def test_two_watchers_on_one_fd(owner, socket_pair):
    """libuv allows one poll for each fd: they share it, and each gets its own events."""
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    made, _ = mqcore._loop.handles()
    reader = context.watch(ours, READ, log.note, "read")
    writer = context.watch(ours.fileno(), WRITE, log.note, "write")
    assert mqcore._loop.handles()[0] == made + 1
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
    made = mqcore._loop.handles()
    with pytest.raises(OSError, match=f"fd {ours.fileno()} is polled already by asyncio") as caught:
        context.watch(ours, READ, print)
    assert caught.value.errno == errno.EEXIST
    assert mqcore._loop.handles()[0] - made[0] in (0, 1)
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


def test_asyncio_is_to_poll_an_fd_that_we_watch(uvloop_owner, socket_pair):
    ours, theirs = socket_pair
    loop = uvloop_owner.loop
    _, context = borrow(uvloop_owner)
    log = Log()
    watcher = context.watch(ours, READ, log.note, "ours")
    with pytest.raises(OSError, match=r".") as caught:
        loop.add_reader(ours, pytest.fail)
    assert caught.value.errno == errno.EEXIST
    theirs.send(b"x")
    uvloop_owner.run_until(lambda: log)
    watcher.stop()
    log.clear()
    loop.add_reader(ours, log.append, "asyncio")
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


def test_asyncio_takes_the_fd_while_its_poll_is_stopped(uvloop_owner):
    """libuv stops a poll on an error condition until it is started again, which may then fail: the watcher is told."""
    owner = uvloop_owner
    _, context = borrow(owner)
    seen = []
    ours = reset_connection()

    def ready(watcher, events):
        seen.append(events)
        if len(seen) == 1:
            owner.loop.add_reader(ours, list)

    watcher = context.watch(ours, READ, ready)
    owner.run_until(lambda: seen)
    owner.run_until(lambda: len(seen) > 1)
    assert seen[-1] == 0
    assert watcher.error.errno == errno.EEXIST
    assert watcher.stop() is False
    owner.loop.remove_reader(ours)
    ours.close()


@pytest.mark.parametrize("moment", ["before the loop polls", "after"])
@pytest.mark.parametrize("other", ["dispatcher", "pyuv.Poll"])
def test_what_another_on_the_loop_watches(owner, other, moment):
    """One poll for each fd of a loop. The second is told, and the first goes on."""
    if (other, owner.name) == ("pyuv.Poll", "uvloop"):
        other = "add_reader"
    said = python(PROLOGUE + """
_, context = borrow()
ours, theirs = socket.socketpair()
ours.setblocking(False)
log = []
if sys.argv[2] == "dispatcher":
    borrow()[1].watch(ours, READ, lambda watcher, events: log.append("other"))
elif sys.argv[2] == "add_reader":
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


# Many


@pytest.mark.slow
def test_a_thousand_fds_at_once(owner):
    """A token goes round: each fd that is read wakes the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * 1000 + 200
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    pipes = [os.pipe() for _ in range(1000)]
    try:
        _, context = borrow(owner)
        reads = []

        def read(watcher, events, number):
            assert os.read(pipes[number][0], 10) == b"x"
            reads.append(number)
            if len(reads) < 5000:
                os.write(pipes[(number + 1) % 1000][1], b"x")

        watchers = [context.watch(reader, READ, read, number) for number, (reader, _) in enumerate(pipes)]
        os.write(pipes[0][1], b"x")
        owner.run_until(lambda: len(reads) == 5000, timeout=30)
        assert reads == list(range(1000)) * 5
        reads.clear()
        reads.extend([-1] * 5000)  # now all at once
        for _, writer in pipes:
            os.write(writer, b"x")
        owner.run_until(lambda: len(reads) == 6000, timeout=30)
        assert sorted(reads[5000:]) == list(range(1000))
        random.Random(5).shuffle(watchers)
        assert all(watcher.stop() for watcher in watchers)
    finally:
        for fd in sum(pipes, ()):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Errors


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
def test_a_watcher_that_raises_is_logged_and_goes_on(owner, socket_pair, caplog, error):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()

    def fail(watcher, events):
        raise error

    watcher = context.watch(ours, READ, fail)
    context.watch(ours, READ, log.note)
    theirs.send(b"x")
    owner.run_until(lambda: len(log) >= 2 and len(caplog.records) >= 2)
    assert watcher.stop() is True
    record = caplog.records[0]
    assert (record.name, record.levelno) == ("mqcore.plugins.lender", logging.ERROR)
    assert "lender" in record.getMessage()
    assert record.exc_info[0] is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_leaves_through_the_loop(uvloop_owner, socket_pair, error):
    owner = uvloop_owner
    ours, theirs = socket_pair
    _, context = borrow(owner)

    def end(watcher, events):
        watcher.stop()
        raise error

    context.watch(ours, READ, end)
    theirs.send(b"x")
    with pytest.raises(error):
        owner.run_until(lambda: False)
    owner.turn()


# What they keep alive


def test_an_active_watcher_needs_no_reference(owner, socket_pair):
    ours, theirs = socket_pair
    _, context = borrow(owner)
    log = Log()
    context.watch(ours, READ, log.note)
    gc.collect()
    theirs.send(b"x")
    owner.run_until(lambda: log)


@pytest.mark.parametrize("end", ["stop", "close", "in its callback"])
def test_a_watcher_in_a_cycle_is_collected_once_it_is_over(owner, socket_pair, end):
    ours, theirs = socket_pair
    dispatcher, context = borrow(owner)
    calls = []

    class Knot:
        pass

    def callback(watcher, events, knot):
        calls.append(events)
        watcher.stop()

    knot = Knot()
    knot.watcher = context.watch(ours, READ, callback, knot)
    seen = weakref.ref(knot)
    del knot
    gc.collect()
    assert seen() is not None
    if end == "stop":
        assert seen().watcher.stop() is True
    elif end == "close":
        dispatcher.close()
    else:
        theirs.send(b"x")
        owner.run_until(lambda: calls)
    gc.collect()
    assert seen() is None


def test_a_watcher_in_a_cycle_with_a_message_and_its_hold(owner, socket_pair):
    ours, theirs = socket_pair

    class Message(mqcore.Message):
        pass

    def answer(watcher, events, hold):
        ours.recv(10)
        hold.complete()

    def hook(context, message):
        hold = context.hold(message)
        message.data["watcher"] = hold.watch(ours, READ, answer, hold)
        return hold

    dispatcher = owner.start({"a": hook})
    message = Message()
    seen = weakref.ref(message)
    outcomes = []
    dispatcher.hook("mq_step").run(message, done=lambda message, outcome: outcomes.append(outcome))
    del message
    gc.collect()
    owner.turn()
    assert not outcomes  # the watcher keeps it
    theirs.send(b"x")
    owner.run_until(lambda: outcomes)
    assert outcomes == [mqcore.COMPLETE]
    gc.collect()
    assert seen() is None


def test_a_file_object_in_its_arguments_may_close_the_fd_when_the_watcher_is_dropped(owner):
    """The last reference to the socket is the watcher's."""
    _, context = borrow(owner)
    ours, theirs = socket.socketpair()
    log = Log()

    class Closing(socket.socket):
        def __del__(self):
            self.close()
            log.append("closed")

    wrapped = Closing(fileno=ours.detach())
    watcher = context.watch(wrapped, READ, lambda watcher, events, end: log.append(events), wrapped)
    del wrapped
    settle(owner)
    watcher.stop()
    del watcher
    gc.collect()
    assert log == ["closed"]
    settle(owner)
    theirs.close()


# Threads, and after close()


def test_watchers_belong_to_the_thread_of_the_dispatcher(owner, socket_pair):
    _, context = borrow(owner)
    watcher = context.watch(socket_pair[0], READ, print)
    raised = []

    def attempt():
        for action in (
            lambda: context.watch(socket_pair[1], READ, print),
            watcher.stop,
            lambda: setattr(watcher, "events", WRITE),
        ):
            try:
                action()
            except mqcore.MqError as error:
                raised.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(raised) == 3 and all("thread" in text for text in raised)
    owner.turn()
    assert watcher.events == READ and watcher.stop() is True


def test_after_close(owner, socket_pair):
    ours, theirs = socket_pair
    dispatcher, context = borrow(owner)
    watcher = context.watch(ours, READ, pytest.fail)
    over = context.watch(ours, WRITE, pytest.fail)
    over.stop()
    theirs.send(b"x")
    dispatcher.close()
    settle(owner)
    for each, events in ((watcher, READ), (over, WRITE)):
        assert (each.fd, each.events, each.error) == (ours.fileno(), events, None)
        assert each.stop() is False
        with pytest.raises(mqcore.DispatcherClosed):
            each.events = READ
    with pytest.raises(mqcore.DispatcherClosed):
        context.watch(ours, READ, pytest.fail)


def test_close_in_a_watcher_callback(owner, socket_pair):
    ours, theirs = socket_pair
    dispatcher, context = borrow(owner)
    calls = []

    def close(watcher, events):
        calls.append(events)
        dispatcher.close()
        assert watcher.stop() is False

    theirs.send(b"x")
    for _ in range(3):
        context.watch(ours, READ, close)
    context.start_timer(0, list)
    owner.run_until(lambda: calls)
    settle(owner)
    assert calls == [READ]


def test_close_in_the_callback_of_one_fd_when_others_are_ready(owner):
    dispatcher, context = borrow(owner)
    pipes = [os.pipe() for _ in range(20)]
    calls = []

    def close(watcher, events):
        calls.append(watcher.fd)
        dispatcher.close()

    for reader, writer in pipes:
        context.watch(reader, READ, close)
        os.write(writer, b"x")
    owner.run_until(lambda: calls)
    settle(owner)
    assert len(calls) == 1
    for fd in sum(pipes, ()):
        os.close(fd)


# Holds


@pytest.mark.parametrize("how", ["complete", "cancel", "deadline", "thread", "fail"])
def test_watchers_end_with_their_hold(owner, socket_pair, how):
    ours, theirs = socket_pair
    kept = []
    log = Log()

    def hook(context, message):
        hold = context.hold(message)
        kept.extend([hold, hold.watch(ours, READ, log.note), hold.watch(ours, WRITE | READ, log.note)])
        return hold

    dispatcher = owner.start({"a": hook}, hold_timeout=0.01 if how == "deadline" else 30)
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    hold, *watchers = kept
    if how == "cancel":
        dispatcher.cancel(message)
    elif how == "thread":
        thread = threading.Thread(target=hold.complete)
        thread.start()
        thread.join()
    elif how == "fail":
        hold.fail("no more")
    elif how == "complete":
        hold.complete()
    if how != "deadline":
        log.clear()
        theirs.send(b"x")
    owner.run_until(lambda: owner.finished)
    if how == "deadline":
        log.clear()
    settle(owner)
    assert not log
    for watcher in watchers:
        assert watcher.stop() is False
        with pytest.raises((mqcore.NotHeld, mqcore.MqError)):
            watcher.events = READ
    with pytest.raises(mqcore.NotHeld):
        hold.watch(ours, READ, log.note)


def test_a_watcher_of_a_hold_that_raises_fails_the_step(owner, socket_pair, caplog):
    ours, theirs = socket_pair

    def fail(watcher, events):
        raise LookupError("not there")

    def hook(context, message):
        hold = context.hold(message)
        hold.watch(ours, READ, fail)
        return hold

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    theirs.send(b"x")
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, LookupError)
    assert "plugin a, hook mq_step" in message.error.__notes__
    assert len(caplog.records) == 1
