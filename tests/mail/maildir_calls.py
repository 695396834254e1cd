"""What becomes of a Maildir when calls of the system fail: `python maildir_calls.py FOLDER`, with maildir_calls.c preloaded.

It goes through all cases, as a start takes longer than they do, and says which failed, for test_mail_maildir_calls.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from mqcore.mail import Mail, MaildirSink, MaildirSource, Origin, SinkError, SinkFull
from mqcore.mail._jobs import JobThread

FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE)
EXIT, SHORT = -1, -2
CALLS = ("open", "write", "fsync", "syncfs", "renameat2")

preloaded = ctypes.CDLL(None)


def fail_at(call: str, at: int, number: int, times: int = 0) -> None:
    """From the at-th call on. See the C file."""
    preloaded.fail_at(call.encode(), at, number, times)


def calls_made() -> list[str]:
    """Since one of these was called."""
    preloaded.calls_made.restype = ctypes.c_char_p
    made: bytes = preloaded.calls_made()
    return made.decode().split()


def work() -> None:
    """No call fails any more."""
    preloaded.fail_at(b"none", 0, 0, 0)


def mail(number: int, **known: object) -> Mail:
    return Mail.read(Origin(b"mail %d" % number, f"{number:032x}", number, **known))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[MaildirSink]:
    with contextlib.closing(MaildirSink(str(path))) as sink:
        yield sink


def error_of(store: Callable[[], object]) -> SinkError | None:
    """What it raises."""
    try:
        store()
    except SinkError as error:
        return error
    return None


class Loop:
    """Calls nothing: what is over is known when the thread is closed."""

    def add_reader(self, fd: int, callback: object) -> None: ...

    def remove_reader(self, fd: int) -> None: ...


def begun(sink: MaildirSink, group: list[Mail], *, as_job: bool) -> Callable[[], None]:
    """What stores them: all that does not belong to that is done before."""
    if not as_job:
        return lambda: sink.store(group)
    thread, job = JobThread(Loop(), print), sink.begin(group)

    def store() -> None:
        thread.begin(job)
        thread.close()
        sink.end(job)

    return store


def files_in(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for folder in ("tmp", "new", "cur") for file in (path / folder).iterdir())


def mails_in(path: Path) -> list[bytes]:
    with contextlib.closing(MaildirSource(str(path))) as source:
        return [origin.mime for origin in source]


def a_group_is_undone(path: Path, call: str, *, as_job: bool) -> None:
    """Whichever call fails, and with whatever: where there is no room, a sink may be used on; where the disk is broken, it may
    not."""
    count = 9 if call == "syncfs" else 3
    places = range(1, 2 if call == "syncfs" else 4)
    known = {"comes_again": not as_job}
    group = [mail(number, flags="S" if number % 2 else None, **known) for number in range(1, count + 1)]
    with opened(path) as sink:
        sink.store([mail(0)])
        before = files_in(path)
        for number in FULL + BROKEN:
            for at in places:
                store = begun(sink, group, as_job=as_job)
                fail_at(call, at, number)
                error = error_of(store)
                work()
                assert type(error) is (SinkFull if number in FULL else SinkError)
                assert str(error).startswith(f"cannot write to maildir:{path}: ")
                assert str(error).endswith(os.strerror(number))
                assert files_in(path) == before, (call, at, number)
        begun(sink, group, as_job=as_job)()
    with opened(path) as sink:
        assert [f"{number:032x}" in sink for number in range(count + 2)] == [True] * (count + 1) + [False]


def without_renameat2(path: Path) -> None:
    """A file gets its name by link(): no other's place is taken, and a group that fails is undone all the same."""
    with opened(path) as sink:
        fail_at("renameat2", 1, errno.ENOSYS)
        sink.store([mail(1), mail(2)])
        assert calls_made().count("linkat") == 2
        first, second = sorted((path / "new").iterdir())
        first.write_bytes(b"was there first")
        second.unlink()
        sink.store([mail(1), mail(2), mail(3)])
        assert mails_in(path) == [b"was there first", b"mail 2", b"mail 3"]
        assert list((path / "tmp").iterdir()) == []


def undoing_leaves_what_was_there(path: Path) -> None:
    with opened(path) as sink:
        sink.store([mail(1)])
        before = files_in(path)
        fail_at("fsync", 3, errno.EIO)  # that of new/
        assert error_of(begun(sink, [mail(1), mail(2)], as_job=False))
        assert files_in(path) == before


def the_order_of_things(path: Path) -> None:
    """Each file is on the disk before it has its name, the names are before the index tells of them and the group counts."""
    with opened(path) as sink:
        sink.store([mail(0)])  # makes the index
        work()
        sink.store([mail(1), mail(2, flags="S")])
        assert calls_made() == [*("open", "write", "fsync") * 2, *("renameat2", "fsync") * 2, "write"]
        work()
        sink.store([mail(number) for number in range(10, 20)])
        assert calls_made() == [*("open", "write") * 10, "syncfs", *["renameat2"] * 10, "fsync", "write"]


def interrupted(path: Path) -> None:
    """By a signal, or with a part written: then it goes on."""
    with opened(path) as sink:
        for place, (call, number) in enumerate(
            [("open", errno.EINTR), ("write", errno.EINTR), ("fsync", errno.EINTR), ("syncfs", errno.EINTR), ("write", SHORT)]
        ):
            fail_at(call, 2 if call != "syncfs" else 1, number, times=2)
            sink.store([mail(10 * place + at, comes_again=False) for at in range(9 if call == "syncfs" else 3)])
            work()
    assert len(mails_in(path)) == 4 * 3 + 9
    assert set(mails_in(path)) <= {b"mail %d" % number for number in range(100)}


def killed(path: Path) -> None:
    """Wherever that was, the next run finds whole mails, knows each of them, and none that is not there."""
    for at in range(1, 100):
        maildir = path / str(at)
        child = os.fork()
        if child == 0:
            with opened(maildir) as sink:
                fail_at("", at, EXIT)
                for group in ((1, 2), (3, 4)):
                    sink.store([mail(number) for number in group])
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        there = {int(text.split()[1]) for text in mails_in(maildir)}
        with opened(maildir) as sink:
            known = {number for number in range(1, 9) if f"{number:032x}" in sink}
            assert known == there
            sink.store([mail(number) for number in range(1, 5) if number not in known])
        assert mails_in(maildir) == [b"mail 1", b"mail 2", b"mail 3", b"mail 4"]
        for file in (maildir / "new").iterdir():
            file.unlink()
        with opened(maildir) as sink:
            assert {number for number in range(1, 9) if f"{number:032x}" in sink} == {1, 2, 3, 4}
        if code == 0:
            assert at > 20
            return
    raise AssertionError("it never ended by itself")


CASES = {
    **{f"a group is undone: {call}": functools.partial(a_group_is_undone, call=call, as_job=False) for call in CALLS},
    **{f"a job is undone: {call}": functools.partial(a_group_is_undone, call=call, as_job=True) for call in CALLS},
    "without renameat2": without_renameat2,
    "undoing leaves what was there": undoing_leaves_what_was_there,
    "the order of things": the_order_of_things,
    "interrupted": interrupted,
    "killed": killed,
}

if __name__ == "__main__":
    folder, failures = Path(sys.argv[1]), {}
    for name, case in CASES.items():
        work()
        try:
            case(folder / name.replace(" ", "-"))
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))
