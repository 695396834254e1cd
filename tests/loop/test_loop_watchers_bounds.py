"""Watchers: what is refused, what they keep alive, and what they end with."""

from __future__ import annotations

import enum
import errno
import gc
import os
import socket
import threading
import weakref

import pytest
from loop_tools import PROLOGUE, Log, borrow, python, settle

import mqcore
import mqcore.loop._reactor
from mqcore import READ, WRITE

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
    made = mqcore.loop._reactor.handles()
    with pytest.raises(PermissionError, match=f"fd {fd} cannot be watched: a file or folder"):
        context.watch(fd, READ, print)
    assert mqcore.loop._reactor.handles() == made
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
