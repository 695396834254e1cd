"""An mbox that other programs write to, and their locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from mail_tools import write_mbox
from test_mail_mbox import FROM, read

from mqcore.mail import Mail, Origin, SinkError, SourceError
from mqcore.mail.mbox import locks
from mqcore.mail.mbox.sink import MboxSink
from mqcore.mail.mbox.source import MboxSource


@pytest.fixture
def path(tmp_path):
    return write_mbox(tmp_path / "mbox", 1)


@contextlib.contextmanager
def another_program(path, program):
    """Locks are between processes, so this takes another one."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        yield process
        if process.poll() is None:
            process.communicate("\n")


LOCKS = {
    "fcntl": "f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX)",
    "flock": "f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX)",
    "file": "f = open(sys.argv[1], 'ab'); open(sys.argv[1] + '.lock', 'x').close()",
    "file of a process": "f = open(sys.argv[1], 'ab'); print(os.getpid(), file=open(sys.argv[1] + '.lock', 'x'), flush=True)",
}
HOLD = "import fcntl, os, sys; {lock}; print(flush=True); input()"


def locked_elsewhere(path, kind="fcntl"):
    return another_program(path, HOLD.format(lock=LOCKS[kind]))


# Reading


@pytest.mark.parametrize("kind", LOCKS)
def test_a_file_that_another_program_writes_to_all_the_time(path, monkeypatch, kind):
    assert locks.PATIENCE == 60
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    with locked_elsewhere(path, kind), pytest.raises(SourceError, match="another program has it locked.*; try again when"):
        MboxSource(str(path))
    path.with_name("mbox.lock").unlink(missing_ok=True)
    assert len(read(path)) == 1


DELIVERY = """
    import fcntl, os, sys
    {lock}
    f.write(b"From c@d Mon Jul 11 12:08:34 2011\\nSubject: second\\n\\nfirst half\\n"); f.flush()
    print(flush=True)
    input()
    f.write(b"second half\\n\\n"); f.close()
    if os.path.exists(sys.argv[1] + ".lock"): os.unlink(sys.argv[1] + ".lock")
"""


@pytest.mark.parametrize("kind", LOCKS)
def test_a_delivery_under_way_is_waited_for(path, monkeypatch, kind):
    with another_program(path, DELIVERY.format(lock=LOCKS[kind])) as delivery:
        slept = []

        def sleep(seconds):
            if not slept:  # the delivery goes on when it has been seen
                delivery.stdin.write("\n")
                delivery.stdin.close()
                delivery.wait()
            slept.append(seconds)

        monkeypatch.setattr(locks.time, "sleep", sleep)
        mails = read(path)
        monkeypatch.undo()
    assert slept
    assert mails[1].mime == b"Subject: second\n\nfirst half\nsecond half\n"


def test_a_delivery_that_ends_while_the_locks_are_looked_at_is_not_read_in_part(path, monkeypatch):
    real, calls = locks._find_lock, []

    def deliver(fd, mbox):
        if not calls:
            with path.open("ab") as file:
                file.write(FROM + b"whole\n\n")
        calls.append(fd)
        return real(fd, mbox)

    monkeypatch.setattr(locks, "_find_lock", deliver)
    assert [origin.mime for origin in read(path)][1:] == [b"whole\n"]
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["dead", "old"])
def test_a_lock_file_that_was_left_behind_is_passed_over_and_left_alone(path, kind):
    lock = path.with_name("mbox.lock")
    leave_behind(lock, kind)
    assert len(read(path)) == 1
    assert lock.exists()


def test_reading_locks_nothing_for_long(path):
    with contextlib.closing(MboxSource(str(path))), path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with locked_elsewhere(path):
            pass


# Writing


def leave_behind(lock, kind):
    if kind == "dead":
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            pass
        lock.write_text(f"{process.pid}:{socket.gethostname()}\n")
    else:
        lock.write_text({"old": "", "procmail": "0", "negative": "-1", "text": "no number"}[kind])
        os.utime(lock, (time.time() - 601,) * 2)
    return lock


@pytest.mark.parametrize("kind", ["old", "procmail", "negative", "text"])
def test_a_lock_file_that_names_no_process_is_taken_over_after_ten_minutes_and_told_of(path, caplog, kind):
    lock = path.with_name("mbox.lock")
    leave_behind(lock, kind)
    os.utime(lock, (time.time() - 590,) * 2)
    with pytest.raises(SinkError, match=rf"{lock} exists; try again .*, or remove {lock}: it names no process, and counts no"):
        MboxSink(str(path))
    assert not caplog.records
    os.utime(lock, (time.time() - 601,) * 2)
    with contextlib.closing(MboxSink(str(path))):
        assert lock.read_text() == f"{os.getpid()}:{socket.gethostname()}\n"
    assert not lock.exists()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{lock} is taken over: it names no process, and is 10 minutes old")


@pytest.mark.parametrize("owner", ["{dead}\n", "{dead}:another.example\n", "{alive}:another.example\n"])
def test_a_lock_file_of_a_process_that_may_be_on_another_host(path, caplog, owner):
    """Over NFS, or from a container: that no such process is here tells nothing."""
    lock = path.with_name("mbox.lock")
    leave_behind(lock, "dead")
    lock.write_text(owner.format(dead=lock.read_text().partition(":")[0], alive=os.getpid()))
    with pytest.raises(SinkError, match=rf"{lock} exists; .*, or remove {lock}: it names .*, and counts no more when it"):
        MboxSink(str(path))
    assert not caplog.records
    os.utime(lock, (time.time() - 601,) * 2)
    MboxSink(str(path)).close()
    assert "minutes old" in caplog.text


@pytest.mark.parametrize("kind", ["fifo", "link", "loop"])
def test_a_lock_file_that_is_none(path, kind):
    """It is not read: that would last for ever, or lead elsewhere. It counts for ten minutes."""
    lock = path.with_name("mbox.lock")
    if kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.symlink_to(lock if kind == "loop" else leave_behind(path.with_name("elsewhere"), "dead"))
    with pytest.raises(SinkError, match="it names no process"):
        MboxSink(str(path))
    os.utime(lock, (time.time() - 601,) * 2, follow_symlinks=False)
    MboxSink(str(path)).close()
    assert not os.path.lexists(lock)
    assert kind != "link" or path.with_name("elsewhere").exists()


def store(sink, number=1):
    sink.store([Mail.read(Origin(b"x\n", f"{number:032x}", received=0))])


def test_a_lock_file_that_somebody_removes_is_made_again(path):
    lock = path.with_name("mbox.lock")
    with contextlib.closing(MboxSink(str(path))) as sink:
        lock.unlink()
        store(sink)
        assert lock.read_text() == f"{os.getpid()}:{socket.gethostname()}\n"
        os.utime(lock, (0, 0))
        store(sink, 2)
        assert time.time() - lock.stat().st_mtime < 300  # others do not take it for left behind
    assert not lock.exists()


def test_a_lock_that_is_lost_ends_the_run(path):
    lock, before = path.with_name("mbox.lock"), path.read_bytes()
    with contextlib.closing(MboxSink(str(path))) as sink:
        lock.unlink()
        lock.write_text("1\n")
        with pytest.raises(SinkError, match=r"another program has it locked: .*mbox\.lock exists; run again when that program"):
            store(sink)
    assert lock.read_text() == "1\n"
    assert path.read_bytes() == before


def test_a_plugin_that_reads_the_mbox_drops_the_lock_and_another_program_takes_it(path):
    """That is fcntl: whoever closes the file in this process ends all its locks on it."""
    with contextlib.closing(MboxSink(str(path))) as sink:
        path.read_bytes()
        with locked_elsewhere(path), pytest.raises(SinkError, match="another program has it locked; run again when that"):
            store(sink)
        path.read_bytes()
        store(sink)  # takes it again
        program = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False)
        assert b"BlockingIOError" in other.stderr


def test_no_room_for_the_lock_file(path, monkeypatch):
    """It is made before anything is written, and is not left behind empty."""
    real = os.write

    def fail(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(SinkError, match="No space left on device"):
        MboxSink(str(path))
    monkeypatch.setattr(os, "write", real)
    assert not path.with_name("mbox.lock").exists()
