"""An fd that is closed while it is watched: libuv would abort the process, or never call back again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import sys
import time

import pytest
from loop_tools import PROLOGUE, borrow, python

import mqcore
from mqcore import READ, WRITE

MOMENTS = ["before the loop polls", "after the loop polled"]


class Told(list):
    """What a watcher was called with."""

    def __call__(self, watcher, events, *args):
        self.append(events)


def pipe():
    """A pipe whose reader has a number that nobody else takes when it is free, the loop for its own files included."""
    low, writer = os.pipe()
    reader = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 300)
    os.close(low)
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


class Ends:
    """A pipe that is watched, and the files that take its number."""

    def __init__(self, folder):
        self.fifo = folder / "fifo"
        os.mkfifo(self.fifo)
        self.folder = folder
        self.kept = []
        self.fd, self.writer = pipe()

    def close(self):
        """Close the watched fd."""
        os.close(self.fd)

    def reopen(self, kind):
        """Another file under the same number."""
        if kind == "pipe":
            new, self.writer2 = os.pipe()
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            new, self.writer2 = ours.detach(), theirs.detach()
        elif kind == "file":
            new = os.open(self.folder / "file", os.O_CREAT | os.O_RDWR)
            self.writer2 = None
        elif kind == "folder":
            new = os.open(self.folder, os.O_RDONLY)
            self.writer2 = None
        elif kind == "fifo":
            new, self.writer2 = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK), None
            self.writer2 = os.dup(new)
        else:
            new, self.writer2 = os.open("/dev/null", os.O_RDONLY), None
        assert not is_open(self.fd)
        os.dup2(new, self.fd, inheritable=False)
        os.close(new)
        self.kept.append(self.writer2)

    def end(self):
        for fd in (self.fd, self.writer, *self.kept):
            if fd is not None and is_open(fd):
                os.close(fd)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def ends(tmp_path, owner):
    ends = Ends(tmp_path)
    yield ends
    ends.end()


def settle(owner):
    for _ in range(3):
        owner.turn()


def assert_lost(watcher, told):
    """It was called once with no events, and stopped."""
    assert told[-1:] == [0] and told.count(0) == 1
    assert isinstance(watcher.error, OSError) and watcher.error.errno == errno.EBADF
    assert str(watcher.fd) in str(watcher.error)
    assert watcher.stop() is False


# Closed, and nothing else


@pytest.mark.parametrize("count", [1, 3])
def test_closed_before_the_loop_polls(owner, ends, count):
    """libuv aborts when it is about to add a poll of a closed fd."""
    _, context = borrow(owner)
    told = [Told() for _ in range(count)]
    watchers = [context.watch(ends.fd, READ, each) for each in told]
    ends.close()
    settle(owner)
    for watcher, each in zip(watchers, told, strict=True):
        assert each == [0]
        assert_lost(watcher, each)


def test_closed_after_the_loop_polled(owner, ends):
    """The kernel forgets it without a word, and so nothing is told until somebody asks."""
    _, context = borrow(owner)
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    settle(owner)
    ends.close()
    settle(owner)
    assert not told or told == [0]
    watcher.stop()
    settle(owner)


def watch_and_close(owner, context, ends, moment):
    """A watcher, and what it is told, of an fd that is closed before or after the loop has polled it."""
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    if moment == "after the loop polled":
        settle(owner)
    ends.close()
    return watcher, told


@pytest.mark.parametrize("moment", MOMENTS)
def test_stop_after_it_was_closed(owner, ends, moment):
    """The wrong order, which many programs have: never told, as nobody watches any more."""
    _, context = borrow(owner)
    watcher, told = watch_and_close(owner, context, ends, moment)
    assert watcher.stop() is True
    settle(owner)
    assert not told and watcher.error is None


@pytest.mark.parametrize("moment", MOMENTS)
def test_events_are_changed_after_it_was_closed(owner, ends, moment):
    _, context = borrow(owner)
    told, other_told = Told(), Told()
    watcher = context.watch(ends.fd, READ, told)
    other = context.watch(ends.fd, READ, other_told)
    if moment == "after the loop polled":
        settle(owner)
    ends.close()
    with pytest.raises(OSError, match=f"fd {ends.fd} was closed") as caught:
        watcher.events = READ | WRITE
    assert caught.value.errno == errno.EBADF
    settle(owner)
    assert_lost(watcher, told)
    assert_lost(other, other_told)


@pytest.mark.parametrize("moment", MOMENTS)
def test_watch_after_it_was_closed(owner, ends, moment):
    _, context = borrow(owner)
    watcher, told = watch_and_close(owner, context, ends, moment)
    with pytest.raises(OSError, match=f"fd {ends.fd} is not open") as caught:
        context.watch(ends.fd, WRITE, pytest.fail)
    assert caught.value.errno == errno.EBADF
    settle(owner)
    assert_lost(watcher, told)


@pytest.mark.parametrize("moment", MOMENTS)
def test_close_of_the_dispatcher_after_it_was_closed(owner, ends, moment):
    dispatcher, context = borrow(owner)
    watcher, told = watch_and_close(owner, context, ends, moment)
    dispatcher.close()
    settle(owner)
    assert not told
    assert watcher.stop() is False


def test_close_of_the_dispatcher_when_the_loss_is_about_to_be_told(owner, ends):
    dispatcher, context = borrow(owner)
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    ends.close()
    with pytest.raises(OSError, match="closed"):
        watcher.events = WRITE
    dispatcher.close()
    settle(owner)
    assert not told
    assert watcher.stop() is False


def test_stop_when_the_loss_is_about_to_be_told(owner, ends):
    _, context = borrow(owner)
    told, other_told = Told(), Told()
    watcher = context.watch(ends.fd, READ, told)
    other = context.watch(ends.fd, READ, other_told)
    ends.close()
    with pytest.raises(OSError, match="closed"):
        watcher.events = WRITE
    assert watcher.stop() is True
    settle(owner)
    assert not told
    assert_lost(other, other_told)


def test_events_when_the_loss_is_about_to_be_told(owner, ends):
    """Whatever it says, it tells the loss once."""
    _, context = borrow(owner)
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    ends.close()
    for events in (WRITE, READ, READ | WRITE, WRITE):
        with contextlib.suppress(OSError):
            watcher.events = events
    settle(owner)
    assert told == [0]
    assert_lost(watcher, told)


@pytest.mark.parametrize("moment", MOMENTS)
def test_many_are_closed(owner, moment):
    _, context = borrow(owner)
    pipes = [pipe() for _ in range(100)]
    told = [Told() for _ in pipes]
    watchers = [context.watch(reader, READ, each) for (reader, _), each in zip(pipes, told, strict=True)]
    if moment == "after the loop polled":
        settle(owner)
    for reader, _ in pipes:
        os.close(reader)
    for watcher in watchers[::2]:
        watcher.stop()
    settle(owner)
    for number, each in enumerate(told):
        assert each in ([], [0])
        if moment == "before the loop polls":
            assert each == ([0] if number % 2 else [])
    for watcher in watchers:
        watcher.stop()
    for _, writer in pipes:
        os.close(writer)
    settle(owner)


# In a callback


@pytest.mark.parametrize("then", ["stop", "nothing", "events", "watch", "close the dispatcher"])
@pytest.mark.parametrize("count", [1, 2])
def test_closed_in_its_own_callback(owner, ends, then, count):
    dispatcher, context = borrow(owner)
    calls = []
    os.write(ends.writer, b"x")

    def close(watcher, events):
        calls.append(events)
        if len(calls) > 1:
            return
        ends.close()
        if then == "stop":
            watcher.stop()
        elif then == "events":
            with pytest.raises(OSError, match="closed"):
                watcher.events = WRITE
        elif then == "watch":
            with pytest.raises(OSError, match="not open"):
                context.watch(ends.fd, READ, pytest.fail)
        elif then == "close the dispatcher":
            dispatcher.close()

    watchers = [context.watch(ends.fd, READ, close) for _ in range(count)]
    owner.run_until(lambda: calls)
    settle(owner)
    for watcher in watchers:
        watcher.stop()
    settle(owner)
    assert calls[0] == READ
    if then in ("events", "watch"):
        assert calls == [READ] + [0] * count  # no other one is called for a file that is known to be gone
        assert all(watcher.error is not None for watcher in watchers)


def test_another_is_closed_in_a_callback(owner, ends):
    """Both are ready in the same turn; the second reads a number that is free by then."""
    _, context = borrow(owner)
    reader, writer = pipe()
    calls = []
    os.write(ends.writer, b"x")
    os.write(writer, b"x")

    def close(watcher, events):
        calls.append("first")
        watcher.stop()
        os.close(reader)

    context.watch(ends.fd, READ, close)
    other = context.watch(reader, READ, lambda watcher, events: calls.append(events))
    owner.run_until(lambda: calls)
    settle(owner)
    other.stop()
    settle(owner)
    os.close(writer)
    assert calls.count("first") == 1


def test_the_loss_is_told_by_callbacks_that_do_all_kinds_of_things(owner, ends):
    _, context = borrow(owner)
    calls = []

    def again(watcher, events):
        calls.append(("again", events))
        if events == 0:
            ends.reopen("pipe")
            context.watch(ends.fd, READ, lambda watcher, events: calls.append(("new", events)))
            os.write(ends.writer2, b"x")

    def fail(watcher, events):
        calls.append(("fail", events))
        raise LookupError("told")

    def stop_all(watcher, events):
        calls.append(("stop", events))
        for each in watchers:
            each.stop()

    watchers = [context.watch(ends.fd, READ, each) for each in (again, fail, stop_all, pytest.fail)]
    ends.close()
    owner.run_until(lambda: ("new", READ) in calls)
    assert calls[:3] == [("again", 0), ("fail", 0), ("stop", 0)]
    assert not [call for call in calls[3:] if call[0] != "new"]


def test_a_watcher_of_a_hold_is_told(owner, ends):
    """A callback of a hold that is told of the loss can fail the step."""
    calls = []

    def answer(watcher, events, hold):
        calls.append(events)
        hold.fail(watcher.error)

    def hook(context, message):
        hold = context.hold(message)
        hold.watch(ends.fd, READ, answer, hold)
        return hold

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    ends.close()
    owner.run_until(lambda: owner.finished)
    assert calls == [0]
    assert message.error.errno == errno.EBADF


def test_a_watcher_of_a_hold_that_is_over_is_not_told(owner, ends):
    def hook(context, message):
        hold = context.hold(message)
        hold.watch(ends.fd, READ, pytest.fail)
        message.data["hold"] = hold
        return hold

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    ends.close()
    message.data["hold"].complete()
    settle(owner)
    assert owner.finished == [(message, mqcore.COMPLETE)]


# Another file under the same number

KINDS = ["pipe", "socket", "file", "folder", "null"]


@pytest.mark.parametrize("kind", KINDS)
def test_reused_before_the_loop_polls(owner, ends, kind):
    """The watcher was for another file, and must not get the events of this one."""
    _, context = borrow(owner)
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    ends.close()
    ends.reopen(kind)
    if ends.writer2 is not None:
        os.write(ends.writer2, b"x")
    settle(owner)
    assert told == [0]
    assert_lost(watcher, told)


@pytest.mark.parametrize("kind", KINDS)
def test_reused_after_the_loop_polled(owner, ends, kind):
    _, context = borrow(owner)
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    settle(owner)
    ends.close()
    ends.reopen(kind)
    if ends.writer2 is not None:
        os.write(ends.writer2, b"x")
    settle(owner)
    assert READ not in told
    if not told:
        with pytest.raises(OSError, match="closed"):
            watcher.events = WRITE
        settle(owner)
    assert_lost(watcher, told)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_stop_after_it_was_reused(owner, ends, kind, moment):
    _, context = borrow(owner)
    watcher, told = watch_and_close(owner, context, ends, moment)
    ends.reopen(kind)
    assert watcher.stop() is True
    settle(owner)
    assert not told


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_watch_after_it_was_reused(owner, ends, kind, moment):
    """The old watchers end; the new one works; however often."""
    _, context = borrow(owner)
    for _ in range(3):
        told = [Told() for _ in range(3)]
        old = [context.watch(ends.fd, READ, each) for each in told]
        if moment == "after the loop polled":
            settle(owner)
        ends.close()
        ends.reopen(kind)
        new_told = Told()
        new = context.watch(ends.fd, READ, new_told)
        second_told = Told()
        second = context.watch(ends.fd, READ, second_told)
        os.write(ends.writer2, b"x")
        owner.run_until(lambda new_told=new_told: new_told)
        settle(owner)
        for watcher, each in zip(old, told, strict=True):
            assert each == [0]
            assert_lost(watcher, each)
        assert set(new_told) == set(second_told) == {READ}
        assert new.error is None
        assert new.stop() is True and second.stop() is True
        os.read(ends.fd, 1)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_watch_after_it_was_reused_by_what_cannot_be_polled(owner, ends, kind, moment):
    _, context = borrow(owner)
    watcher, told = watch_and_close(owner, context, ends, moment)
    ends.reopen(kind)
    with pytest.raises(PermissionError):
        context.watch(ends.fd, READ, pytest.fail)
    settle(owner)
    assert_lost(watcher, told)


@pytest.mark.parametrize("moment", MOMENTS)
def test_watch_after_stop_and_reuse(owner, ends, moment):
    """Everything in order but the stop, which comes after the close."""
    _, context = borrow(owner)
    told = Told()
    for _ in range(3):
        watcher = context.watch(ends.fd, READ, pytest.fail)
        if moment == "after the loop polled":
            settle(owner)
        ends.close()
        watcher.stop()
        ends.reopen("pipe")
    context.watch(ends.fd, READ, told)
    os.write(ends.writer2, b"x")
    owner.run_until(lambda: told)
    assert told[0] == READ


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_fifo_opened_again(owner, ends, moment):
    """The same file, so nobody can tell; but the kernel has forgotten the old poll, and watch() starts it again."""
    _, context = borrow(owner)
    ends.close()
    ends.reopen("fifo")
    old_told, new_told = Told(), Told()
    old = context.watch(ends.fd, READ, old_told)
    if moment == "after the loop polled":
        settle(owner)
    ends.close()
    ends.reopen("fifo")
    new = context.watch(ends.fd, READ, new_told)
    os.write(ends.writer2, b"x")
    owner.run_until(lambda: new_told)
    settle(owner)
    assert set(new_told) == {READ}
    assert set(old_told) <= {READ}  # it still watches what is the same file
    assert old.error is None
    old.stop()
    new_told.clear()
    owner.run_until(lambda: new_told)
    new.stop()


def test_events_are_changed_after_the_same_fifo_was_opened_again(owner, ends):
    _, context = borrow(owner)
    ends.close()
    ends.reopen("fifo")
    told = Told()
    watcher = context.watch(ends.fd, READ, told)
    settle(owner)
    ends.close()
    ends.reopen("fifo")
    watcher.events = READ | WRITE
    owner.run_until(lambda: told)
    assert told[0] & WRITE


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="eventfd is Linux's")
@pytest.mark.parametrize("moment", MOMENTS)
def test_files_that_share_an_inode(owner, moment):
    """All eventfds have one inode, so fstat cannot tell them apart."""
    _, context = borrow(owner)
    low = os.eventfd(0, os.EFD_NONBLOCK)
    fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 300)
    os.close(low)
    told, new_told = Told(), Told()
    old = context.watch(fd, READ, told)
    if moment == "after the loop polled":
        settle(owner)
    os.close(fd)
    low = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(low, fd)
    os.close(low)
    new = context.watch(fd, READ, new_told)
    os.eventfd_write(fd, 1)
    owner.run_until(lambda: new_told)
    assert set(new_told) == {READ} and set(told) <= {READ}
    old.stop()
    new.stop()
    os.close(fd)


def test_a_reused_number_in_a_callback(owner, ends):
    """One watcher of two closes the fd and watches what came in its place: the other one must not read there."""
    _, context = borrow(owner)
    calls = []
    os.write(ends.writer, b"x")

    def replace(watcher, events):
        calls.append(("first", events))
        if events:
            ends.close()
            ends.reopen("pipe")
            context.watch(ends.fd, READ, lambda watcher, events: calls.append(("new", events)))

    context.watch(ends.fd, READ, replace)
    context.watch(ends.fd, READ, lambda watcher, events: calls.append(("second", events)))
    owner.run_until(lambda: ("second", 0) in calls)
    settle(owner)
    assert sorted(calls) == [("first", 0), ("first", READ), ("second", 0)]


def test_two_fds_are_exchanged(owner, tmp_path):
    """dup2() of each over the other: both watchers end, none gets what is the other's."""
    _, context = borrow(owner)
    one, one_writer = pipe()
    two, two_writer = pipe()
    told_one, told_two = Told(), Told()
    context.watch(one, READ, told_one)
    context.watch(two, READ, told_two)
    spare = os.dup(one)
    os.dup2(two, one)
    os.dup2(spare, two)
    os.close(spare)
    settle(owner)
    assert told_one == told_two == [0]
    for fd in (one, two, one_writer, two_writer):
        os.close(fd)


# A duplicate keeps the file open


@pytest.mark.parametrize("moment", MOMENTS)
def test_closed_while_a_duplicate_is_open(owner, ends, moment):
    """The kernel goes on with the file, under the old number. Timers and other watchers go on; nothing aborts."""
    _, context = borrow(owner)
    told, fired, other_told = Told(), [], Told()
    double = os.dup(ends.fd)
    watcher = context.watch(ends.fd, READ, told)
    reader, writer = os.pipe()
    other = context.watch(reader, READ, other_told)
    if moment == "after the loop polled":
        settle(owner)
    ends.close()
    os.write(ends.writer, b"x")
    settle(owner)
    watcher.stop()
    context.start_timer(0.001, fired.append, 1)
    os.write(writer, b"x")
    owner.run_until(lambda: fired and other_told)
    other.stop()
    for fd in (double, reader, writer):
        os.close(fd)
    settle(owner)


@pytest.mark.parametrize("moment", MOMENTS)
def test_reused_while_a_duplicate_is_open(owner, ends, moment):
    """Events of the old file may come under the number of the new one: at worst a read that finds nothing."""
    _, context = borrow(owner)
    told, new_told = Told(), Told()
    double = os.dup(ends.fd)
    context.watch(ends.fd, READ, told)
    if moment == "after the loop polled":
        settle(owner)
    ends.close()
    ends.reopen("pipe")
    new = context.watch(ends.fd, READ, new_told)
    os.write(ends.writer2, b"x")
    owner.run_until(lambda: new_told)
    settle(owner)
    assert told == [0]
    assert set(new_told) == {READ}
    new.stop()
    os.close(double)


@pytest.mark.skipif(sys.platform != "linux", reason="the epoll is Linux's")
@pytest.mark.parametrize("ran", [0, 1])
def test_more_duplicates_of_one_file_than_the_system_polls(owner, ran):
    """libuv aborts where the system refuses what it polls."""
    said = python(PROLOGUE + """
dispatcher, context = borrow()
reader, writer = os.pipe()
if int(sys.argv[2]):
    context.watch(writer, WRITE, print).stop()
    turn()
watchers, error = [], None
while error is None and len(watchers) < 600:
    try:
        watchers.append(context.watch(os.dup(reader), READ, lambda watcher, events: told.add(watcher.stop())))
    except OSError as caught:
        error = caught
told = set()
os.write(writer, b"x")
for _ in range(5):
    turn()
print(len(watchers), error.errno == errno.EINVAL, "500 duplicates of one file" in str(error), told)
dispatcher.close()
turn()
""", owner.name, ran)
    assert said == "500 True True {True}\n"


# In processes of their own: what happens where nothing was done about it


@pytest.mark.parametrize("moment", ["0", "2"])
def test_closed_by_a_timer_of_the_loop_itself(owner, moment):
    """asyncio's or pyuv's own callbacks run outside of our turns."""
    said = python(PROLOGUE + """
_, context = borrow()
low, writer = os.pipe()
reader = os.dup2(low, 300)
os.close(low)
milliseconds = int(sys.argv[2])

def replace(*args):
    watcher.events = WRITE | READ
    os.close(reader)

watcher = context.watch(reader, READ, lambda watcher, events: print(events, errno.errorcode[watcher.error.errno]))
if sys.argv[1] == "uvloop":
    loop.call_later(milliseconds / 1000, replace)
else:
    timer = pyuv.Timer(loop)
    timer.start(replace, milliseconds / 1000, 0)
turn(20)
watcher.stop()
os._exit(0)
""", owner.name, moment)
    assert said in ("", "0 EBADF\n")


@pytest.mark.parametrize("first", ["the watcher", "the handle"])
def test_closed_by_a_prepare_handle(pyuv_owner, first):
    """It is called after all that a turn does, right before the loop polls."""
    said = python(PROLOGUE + """
_, context = borrow()
turn()
low, writer = os.pipe()
reader = os.dup2(low, 300)
os.close(low)
prepare = pyuv.Prepare(loop)

def watch():
    context.watch(reader, READ, lambda watcher, events: print(events, errno.errorcode[watcher.error.errno], flush=True))

def close(handle):
    os.close(reader)
    handle.stop()

if sys.argv[2] == "the watcher":
    watch()
prepare.start(close)
if sys.argv[2] == "the handle":
    watch()
turn()
os._exit(0)
""", pyuv_owner.name, first)
    assert said == "0 EBADF\n"


def test_random_orders(owner, tmp_path):
    """Watch, change, stop, close, open again and turn the loop in any order: never an abort."""
    chance = random.Random(11)
    _, context = borrow(owner)
    limit = time.monotonic() + 2
    watchers = []
    pairs = []  # (fd, writer), with the fd open or closed
    lost = []

    def note(watcher, events):
        if events == 0:
            lost.append(watcher.fd)
        else:
            with contextlib.suppress(OSError):  # another watcher has read it, or it was closed
                os.read(watcher.fd, 100)

    for step in range(6000):
        action = chance.randrange(10)
        if action <= 1 and len(pairs) < 30:
            pairs.append(pipe())
        elif action <= 4 and pairs:
            fd, _ = chance.choice(pairs)
            watchers.append(context.watch(fd, READ, note))
        elif action == 5 and watchers:
            watchers.pop(chance.randrange(len(watchers))).stop()
        elif action == 6 and watchers:
            with contextlib.suppress(OSError, mqcore.MqError):
                chance.choice(watchers).events = chance.choice([READ, WRITE, READ | WRITE])
        elif action == 7 and pairs:
            reader, writer = pairs.pop(chance.randrange(len(pairs)))
            os.close(reader)
            os.close(writer)
        elif action == 8 and pairs:
            with contextlib.suppress(BlockingIOError):
                os.write(chance.choice(pairs)[1], b"x")
        else:
            owner.spin(wait=False)
        if step % 100 == 0 and time.monotonic() > limit:
            break
    for watcher in watchers:
        watcher.stop()
    for pair in pairs:
        for fd in pair:
            os.close(fd)
    settle(owner)
    assert lost
