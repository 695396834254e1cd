"""A Maildir as a sink, and what can go wrong: faults of the system, other writers, a run that is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path

import pytest
from mail_tools import make_maildir, read_maildir, small_disk
from test_mail_maildir import mail, opened

from mqcore.mail import MaildirSink, MaildirSource, SinkError, SinkFull, SourceError
from mqcore.mail.maildir import format as maildir
from mqcore.mail.maildir import sink as maildir_sink
from mqcore.mail.maildir._files import Group


def failing(function, call, error):
    """The function, which fails from that call on."""
    calls = 0

    def wrapped(*args, **options):
        nonlocal calls
        calls += 1
        if calls >= call:
            raise error
        return function(*args, **options)

    return wrapped


@pytest.mark.parametrize("folder", ["new", "cur", "tmp"])
@pytest.mark.parametrize("dangles", [False, True])
def test_a_folder_that_is_a_link(tmp_path, folder, dangles):
    """Whoever owns a Maildir must not lead root to read or write elsewhere. All of it may be a link."""
    path = make_maildir(tmp_path / "real", [b"x"])
    elsewhere = tmp_path / "elsewhere"
    (path / folder).rename(elsewhere)
    (path / folder).symlink_to(tmp_path / "nowhere" if dangles else elsewhere)
    (tmp_path / "link").symlink_to(path)
    before = sorted(tmp_path.rglob("*"))
    says = f"link/{folder}: this is a link, and may not be one; make {folder} a folder, or let all of the Maildir be a link"
    with pytest.raises(SinkError, match=says):
        MaildirSink(str(tmp_path / "link"))
    if folder != "tmp":
        with pytest.raises(SourceError, match=says):
            MaildirSource(str(tmp_path / "link"))
    assert sorted(tmp_path.rglob("*")) == before
    (path / folder).unlink()
    elsewhere.rename(path / folder)
    with contextlib.closing(MaildirSource(str(tmp_path / "link"))) as source, opened(tmp_path / "link") as sink:
        assert [origin.mime for origin in source] == [b"x"]
        sink.store([mail("y", 1)])
    assert len(files_in(path)) == 2


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_file_that_becomes_something_else_before_it_is_read(tmp_path, kind):
    path = make_maildir(tmp_path / "in", [b"one", b"two"])
    (tmp_path / "victim").write_bytes(b"precious")
    with contextlib.closing(MaildirSource(str(path))) as source:
        first = path / "new" / "1700000000.M000000.example"
        first.unlink()
        {"link": lambda: first.symlink_to(tmp_path / "victim"), "fifo": lambda: os.mkfifo(first), "folder": first.mkdir}[kind]()
        assert [origin.mime for origin in source] == [b"two"]


def test_a_mail_that_is_moved_to_a_folder_that_was_not_there(tmp_path):
    path = make_maildir(tmp_path / "in", [b"one"])
    (path / "cur").rmdir()
    with contextlib.closing(MaildirSource(str(path))) as source:
        (path / "cur").mkdir()
        name = "1700000000.M000000.example"
        (path / "new" / name).rename(path / "cur" / f"{name}:2,S")
        assert [origin.flags for origin in source] == ["S"]


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [(maildir_sink, "as_delivered", 2), (maildir, "make_file", 2)],
)
def test_an_error_that_nobody_foresaw_undoes_a_group_too(tmp_path, monkeypatch, module, name, call):
    monkeypatch.setattr(maildir_sink, "PORTION", 1)  # the first one is written then
    with opened(tmp_path / "out") as sink:
        monkeypatch.setattr(module, name, failing(getattr(module, name), call, ValueError("a bug")))
        with pytest.raises(ValueError, match="a bug"):
            sink.store([mail("one", 1), mail("two", 2, flags="S")])
        assert files_in(tmp_path / "out") == []


def files_in(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for folder in ("tmp", "new", "cur") for file in (path / folder).iterdir())


def test_no_memory(tmp_path, monkeypatch):
    with opened(tmp_path / "out") as sink:
        with monkeypatch.context() as fault:
            fault.setattr(maildir_sink, "as_delivered", failing(maildir_sink.as_delivered, 2, MemoryError()))
            with pytest.raises(SinkFull, match="out: Cannot allocate memory"):
                sink.store([mail("a", 1), mail("b", 2)])
        assert files_in(tmp_path / "out") == []
        sink.store([mail("a", 1), mail("b", 2)])


def test_few_files(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with opened(tmp_path / "out") as sink:
        sink.store([mail("before", 1)])
        os.close(free := os.open(tmp_path, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(SinkFull, match="out: .*: Too many open files"):
                sink.store([mail("a", 2), mail("b", 3)])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sink.store([mail("a", 2), mail("b", 3)])
    assert sorted(read_maildir(tmp_path / "out")) == [b"a", b"b", b"before"]


def test_a_disk_with_no_room_for_the_index(tmp_path):
    with small_disk(tmp_path / "disk") as disk, opened(disk / "out") as sink:
        sink.store([mail("first", 1)])
        index = (disk / "out" / "mqcore.stored").read_bytes()
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        group = [mail("", number) for number in range(2, 500)]  # empty files take no room, but their names
        with pytest.raises(SinkFull):
            sink.store(group)
        assert read_maildir(disk / "out") == [b"first"]
        assert (disk / "out" / "mqcore.stored").read_bytes() == index
        (disk / "filler").unlink()
        sink.store(group)
        assert len(read_maildir(disk / "out")) == 499


# Other writers


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Nobody can guess the name; but if somebody could, he would get nothing written to where he likes."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(os, "urandom", bytes)
    with opened(tmp_path / "out") as sink:
        planted = tmp_path / "out" / "tmp" / f"Q{1:032x}.mqcore.{bytes(8).hex()}.0"
        planted.symlink_to(victim)
        with pytest.raises(SinkError, match="File exists"):
            sink.store([mail("evil", 1)])
        assert victim.read_text() == "precious"
        sink.store([mail("evil", 1)])
    assert victim.read_text() == "precious"
    assert read_maildir(tmp_path / "out") == [b"evil"]


def test_the_names_in_tmp_are_no_ones_else(tmp_path, monkeypatch):
    """They have the id, what tells one writer from another, and a counter: also where the same mail is written twice."""
    names = []

    class Noting:
        def __init__(self, *arguments, **options):
            self.group = Group(*arguments, **options)

        def add(self, file, *more):
            names.append(file)
            self.group.add(file, *more)

        def __getattr__(self, name):
            return getattr(self.group, name)

    monkeypatch.setattr(maildir_sink, "Group", Noting)
    for _ in range(2):
        with opened(tmp_path / "out") as sink:
            sink.store([mail("a", 1)])
            sink.store([mail("a", 1)])
    assert len(set(names)) == len(names) == 4
    assert {maildir.parse_id(name.decode()) for name in names} == {f"{1:032x}"}


def test_a_mail_whose_name_is_taken_is_there(tmp_path):
    """By the same mail, as the id is in the name; what is there is not touched."""
    with opened(tmp_path / "out") as sink:
        sink.store([mail("a", 1), mail("b", 2)])
        (first, second) = sorted((tmp_path / "out" / "new").iterdir())
        first.write_bytes(b"was there first")
        second.unlink()
        sink.store([mail("a", 1), mail("b", 2), mail("c", 3)])
    assert read_maildir(tmp_path / "out") == [b"was there first", b"b", b"c"]
    assert list((tmp_path / "out" / "tmp").iterdir()) == []


def test_without_a_lock_nothing_is_cleaned(tmp_path, monkeypatch):
    """As on NFS: what is in tmp/ may be of a writer that lives."""
    path = make_maildir(tmp_path / "out", [])
    half = path / "tmp" / f"Q{1:032x}.mqcore.1.2"
    half.write_bytes(b"ha")
    with monkeypatch.context() as nfs:
        nfs.setattr("fcntl.flock", failing(None, 1, OSError(errno.EBADF, "Bad file descriptor")))
        with opened(path):
            assert half.exists()
    with opened(path):
        assert not half.exists()


def test_what_is_no_file_in_tmp_stays(tmp_path):
    path = make_maildir(tmp_path / "out", [])
    (path / "tmp" / f"Q{1:032x}.mqcore.1.2").mkdir()
    with opened(path) as sink:
        sink.store([mail("a", 1)])
    assert read_maildir(path) == [b"a"]


# The index


def known(path: Path, count: int = 5) -> set[int]:
    with opened(path) as sink:
        return {number for number in range(count) if f"{number:032x}" in sink}


def empty(path: Path) -> None:
    for file in (path / "new").iterdir():
        file.unlink()


def test_wherever_the_index_is_cut_off_what_is_there_is_known(tmp_path):
    path = tmp_path / "out"
    with opened(path) as sink:
        sink.store([mail(f"mail {number}", number) for number in range(4)])
    whole = (path / "mqcore.stored").read_bytes()
    sizes = (0, 1, 16, 32, 33, 34, 65, 66, 67, 131, 132)
    for size in sizes:
        (path / "mqcore.stored").write_bytes(whole[:size])
        assert known(path) == {0, 1, 2, 3}
    assert (path / "mqcore.stored").read_bytes() == whole  # what was asked for is noted again
    empty(path)
    for size in sizes:
        (path / "mqcore.stored").write_bytes(whole[:size] + b"\0" * (size % 50))
        assert known(path) == set(range(size // 33)), size


def test_a_mail_without_a_line_gets_one_when_it_comes_again(tmp_path):
    """As when a run was killed between the two, or an older mqcore wrote it."""
    path = tmp_path / "out"
    with opened(path) as sink:
        sink.store([mail("a", 1), mail("b", 2)])
    (path / "mqcore.stored").unlink()
    assert known(path) == {1, 2}
    empty(path)
    assert known(path) == {1, 2}


def test_mails_of_clients_are_in_no_index(tmp_path):
    """Their ids never come again, and there is no end of them. Of a queue, which has recipients too, they do."""
    with opened(tmp_path / "out") as sink:
        sink.store([mail("sent", 1, recipient="a@example.org", comes_again=False)])
        assert not (tmp_path / "out" / "mqcore.stored").exists()
        sink.store([mail("queued", 2, recipient="a@example.org")])
    assert (tmp_path / "out" / "mqcore.stored").read_text() == f"{2:032x}\n"
    assert known(tmp_path / "out") == {1, 2}


def test_a_maildir_that_was_removed_but_for_its_index_is_a_new_one(tmp_path):
    path = tmp_path / "out"
    with opened(path) as sink:
        sink.store([mail("a", 1)])
    empty(path)
    for folder in ("tmp", "new", "cur"):
        (path / folder).rmdir()
    assert known(path) == set()
    with opened(path) as sink:
        sink.store([mail("a", 1)])
    assert known(path) == {1}


def test_an_index_that_is_no_file_of_ours(tmp_path):
    path = make_maildir(tmp_path / "out", [])
    (tmp_path / "victim").write_text("precious")
    (path / "mqcore.stored").symlink_to(tmp_path / "victim")
    with pytest.raises(SinkError, match=r"cannot write to maildir:.*out: .*mqcore.stored: Too many levels of symbolic"):
        opened(path).__enter__()
    assert (tmp_path / "victim").read_text() == "precious"
