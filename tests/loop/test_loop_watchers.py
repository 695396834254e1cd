"""Watchers: what they are told, changed and stopped at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import resource
import select
import socket

import pytest
from loop_tools import Log, borrow, reset_connection, settle

import mqcore
import mqcore.loop._reactor
from mqcore import READ, WRITE

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


# Many


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
