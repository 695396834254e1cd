"""An mbox as a sink, and the journal that keeps it whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mail_tools import read_mbox, small_disk
from test_mail_mbox import FROM, read
from test_mail_mbox_locks import locked_elsewhere

from mqcore.mail import Mail, Origin, SinkError, SinkFull
from mqcore.mail.mbox.sink import MboxSink


@contextlib.contextmanager
def opened(path: Path) -> Iterator[MboxSink]:
    with contextlib.closing(MboxSink(str(path))) as sink:
        yield sink


def mail(number: int, text: str | None = None) -> Mail:
    mime = f"mail {number}\n" if text is None else text
    return Mail.read(Origin(mime.encode(), f"{number:032x}", number, "a@example.org", 0))


def fill(path: Path, *groups: list[int]) -> None:
    with opened(path) as sink:
        for group in groups:
            sink.store([mail(number) for number in group])


def known(path: Path) -> set[int]:
    """Which of the first ten mails a second run takes for stored."""
    with opened(path) as sink:
        return {number for number in range(10) if f"{number:032x}" in sink}


def stored(path: Path) -> list[int]:
    return [int(origin.mime.split()[1]) for origin in read(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mbox"


def test_mails_are_appended(path):
    fill(path, [0, 1], [2])
    fill(path, [3])
    assert stored(path) == [0, 1, 2, 3]
    assert read_mbox(path) == [f"mail {number}\n".encode() for number in range(4)]
    assert known(path) == {0, 1, 2, 3}
    assert not path.with_name("mbox.lock").exists()


@pytest.mark.parametrize("end", ["\n\n", "\n", ""])
def test_what_was_there_before_stays_as_it_was(path, end):
    path.write_bytes(FROM + f"mail 9{end}".encode())
    before = [origin.mime for origin in read(path)]
    fill(path, [0])
    assert [origin.mime for origin in read(path)] == [*before, b"mail 0\n"]
    assert known(path) == {0}


# A run that was killed. Its lock file is still there, and the mbox may end anywhere in the last group.


def test_wherever_a_run_was_killed_each_mail_is_there_once(path):
    fill(path, [0, 1])
    settled = path.stat().st_size
    fill(path, [2, 3, 4])
    whole, journal = path.read_bytes(), path.with_name("mbox.mqcore")
    lines = journal.read_bytes()
    for size in range(settled, len(whole) + 1):
        path.write_bytes(whole[:size])
        journal.write_bytes(lines)
        path.with_name("mbox.lock").write_text(f"{dead_process()}:{socket.gethostname()}\n")
        with opened(path) as sink:
            missing = [number for number in range(6) if f"{number:032x}" not in sink]
            assert stored(path) == [number for number in range(6) if number not in missing], size
            sink.store([mail(number) for number in missing])
        assert stored(path) == [0, 1, 2, 3, 4, 5]
        assert known(path) == {0, 1, 2, 3, 4, 5}


def test_a_journal_line_that_is_half_written_had_nothing_in_the_mbox_yet(path):
    fill(path, [0], [1])
    settled, journal = path.read_bytes(), path.with_name("mbox.mqcore")
    before = journal.read_bytes()
    fill(path, [2])
    line = journal.read_bytes()[len(before) :]
    for size in range(len(line) - 1):
        path.write_bytes(settled)
        journal.write_bytes(before + line[:size])
        assert known(path) == {0, 1}, size
    fill(path, [2])
    assert stored(path) == [0, 1, 2]
    assert known(path) == {0, 1, 2}


def test_a_power_failure_may_leave_zeros(path):
    fill(path, [0])
    size = path.stat().st_size
    fill(path, [1])
    path.write_bytes(path.read_bytes()[:size] + b"\0" * 20)
    assert known(path) == {0}
    assert stored(path) == [0]


@functools.cache
def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


# Other programs


def test_what_another_program_appended_is_kept(path):
    fill(path, [0], [1])
    with path.open("ab") as file:
        file.write(FROM + b"mail 9\n\n")
    assert known(path) == {0, 1}
    fill(path, [2])
    assert stored(path) == [0, 1, 9, 2]
    assert known(path) == {0, 1, 2}


def test_what_another_program_appended_in_place_of_a_group_that_never_came_is_kept(path):
    fill(path, [0])
    size = path.stat().st_size
    fill(path, [1])
    os.truncate(path, size)
    with path.open("ab") as file:
        file.write(b"From other@example.org Tue Nov 24 05:31:47 2026\nmail 9\n\n")
    assert known(path) == {0}
    fill(path, [1])
    assert stored(path) == [0, 9, 1]
    assert known(path) == {0, 1}


def test_what_another_program_appended_to_half_a_mail_is_not_touched(path):
    fill(path, [0], [1])
    half = path.stat().st_size - 4
    os.truncate(path, half)
    with path.open("ab") as file:
        file.write(b"\n\n" + FROM + b"mail 9\n\n")
    content = path.read_bytes()
    with pytest.raises(SinkError) as raised:
        MboxSink(str(path))
    at = content.index(b"From a@", 1)
    assert str(raised.value) == (
        f"the last run was killed while it wrote a mail to {path}, and another program has added to it since; "
        f"cut the half mail that begins at byte {at} out of it, and run again"
    )
    assert path.read_bytes() == content
    path.write_bytes(content[:at] + content[half + 2 :])
    assert known(path) == {0}
    fill(path, [1])
    assert stored(path) == [0, 9, 1]


@pytest.mark.parametrize("content", [None, b"", FROM + b"mail 9\n\n", FROM + b"mail 9\n" * 100])
def test_after_the_mbox_was_replaced_nothing_is_taken_for_stored(path, content):
    fill(path, [0], [1], [2])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert known(path) == set()
    fill(path, [0])
    assert path.read_bytes().startswith(content or b"")
    assert known(path) == {0}


def test_a_locked_mbox(path):
    path.touch()
    with locked_elsewhere(path), pytest.raises(SinkError) as raised:
        MboxSink(str(path))
    assert str(raised.value) == (
        f"cannot write to mbox:{path}: another program has it locked; try again when that program is done"
    )


@pytest.mark.parametrize("owner", ["", "1\n", f"{os.getpid()}\n", "not a number"], ids=["empty", "init", "own", "text"])
def test_a_lock_file_that_may_be_in_use_is_respected(path, owner):
    lock = path.with_name("mbox.lock")
    lock.write_text(owner)
    with pytest.raises(SinkError, match=r"another program has it locked: .*mbox\.lock exists; try again"):
        MboxSink(str(path))
    assert lock.read_text() == owner


# What cannot be written to


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "cannot write to mbox:{path}: Is a directory"),
        (lambda path: os.mkfifo(path), "cannot write to mbox:{path}: it is no regular file"),
        (
            lambda path: path.write_bytes(b"letters"),
            "mbox:{path} is no mbox: it begins with b'letters', not with 'From '; name another file",
        ),
        (
            lambda path: path.with_name("mbox.mqcore").mkdir(),
            "cannot write to mbox:{path}: {path}.mqcore: Is a directory",
        ),
    ],
)
def test_what_cannot_be_written_to(path, make, message):
    make(path)
    with pytest.raises(SinkError) as raised:
        MboxSink(str(path))
    assert str(raised.value) == message.format(path=path)
    assert not path.with_name("mbox.lock").exists()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_group_that_fails_is_undone_as_a_whole(path, monkeypatch, call):
    fill(path, [0])
    before = path.read_bytes()
    for calls in range(1, 5 if call == "write" else 3):
        with opened(path) as sink:
            monkeypatch.setattr(os, call, failing(getattr(os, call), calls))
            with pytest.raises(SinkError, match=r"cannot write to mbox:.*mbox: Input/output error"):
                sink.store([mail(number) for number in (1, 2, 3)])
            monkeypatch.undo()
        assert path.read_bytes() == before
        assert known(path) == {0}


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EROFS], ids=errno.errorcode.get)
def test_where_there_is_no_room_it_can_be_used_on_unless_a_sync_failed(path, monkeypatch, call, number):
    fill(path, [0])
    before = path.read_bytes()
    with opened(path) as sink:
        for calls in range(1, 5 if call == "write" else 3):
            monkeypatch.setattr(os, call, failing(getattr(os, call), calls, number))
            with pytest.raises(SinkError, match=rf"cannot write to mbox:.*mbox: {os.strerror(number)}") as raised:
                sink.store([mail(1), mail(2), mail(3)])
            monkeypatch.undo()
            assert isinstance(raised.value, SinkFull) == (call == "write" and number != errno.EROFS)
            assert path.read_bytes() == before
        sink.store([mail(1), mail(2)])
    assert stored(path) == [0, 1, 2]
    assert known(path) == {0, 1, 2}


def test_what_cannot_be_undone_ends_the_run_and_the_next_one_undoes_it(path, monkeypatch):
    fill(path, [0])
    with opened(path) as sink:
        monkeypatch.setattr(os, "write", failing(os.write, 3, errno.ENOSPC))
        monkeypatch.setattr(os, "ftruncate", failing(os.ftruncate, 1, errno.ENOSPC))
        with pytest.raises(SinkError, match="No space left") as raised:
            sink.store([mail(1), mail(2)])
        assert not isinstance(raised.value, SinkFull)
        monkeypatch.undo()
    assert known(path) == {0, 1}
    assert stored(path) == [0, 1]


def test_no_memory(path, monkeypatch):
    with opened(path) as sink:
        sink.store([mail(0)])
        with monkeypatch.context() as fault:
            fault.setattr("mqcore.mail.mbox.sink.Group.plan", lambda *args: bytearray(1 << 62))
            with pytest.raises(SinkFull, match="mbox: Cannot allocate memory"):
                sink.store([mail(1)])
        sink.store([mail(1)])
    assert stored(path) == [0, 1]


def test_a_planted_link_is_not_followed(path, tmp_path):
    (tmp_path / "victim").write_text("precious")
    path.with_name("mbox.mqcore").symlink_to(tmp_path / "victim")
    with pytest.raises(SinkError, match=r"cannot write to mbox:.*mbox: .*mbox\.mqcore: Too many levels of symbolic links"):
        MboxSink(str(path))
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("instead", [None, b"", FROM + b"mail 9\n\n"])
def test_an_mbox_that_somebody_removes_takes_no_more(path, instead):
    with opened(path) as sink:
        sink.store([mail(0)])
        path.rename(path.with_name("moved"))
        if instead is not None:
            path.write_bytes(instead)
        with pytest.raises(SinkError, match=r"cannot write to mbox:.*mbox: somebody moved or removed it while"):
            sink.store([mail(1)])
    assert (path.read_bytes() if path.exists() else None) == instead
    assert stored(path.with_name("moved")) == [0]
    fill(path, [1])
    assert stored(path)[-1] == 1


def failing(function, calls, number=errno.EIO):
    """The function, which fails at that call."""
    made = 0

    def call(*args):
        nonlocal made
        made += 1
        if made == calls:
            raise OSError(number, os.strerror(number))
        return function(*args)

    return call


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "mbox"
        with opened(path) as sink:
            sink.store([mail(0)])
            with pytest.raises(SinkFull, match=r"cannot write to mbox:.*mbox: No space left on device"):
                sink.store([mail(1), mail(2, "x" * 2_000_000)])
            sink.store([mail(1)])
        assert stored(path) == [0, 1]
        assert known(path) == {0, 1}
