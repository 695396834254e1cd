"""A Maildir as a source and as a sink."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from mail_tools import make_maildir, read_maildir, real_mails, small_disk

from mqcore.mail import Mail, Origin, SinkError, SinkFull, SourceError
from mqcore.mail.maildir import _files
from mqcore.mail.maildir import format as maildir
from mqcore.mail.maildir import sink as maildir_sink
from mqcore.mail.maildir.sink import MaildirSink
from mqcore.mail.maildir.source import MaildirSource


def read(path: Path) -> list[Origin]:
    with contextlib.closing(MaildirSource(str(path))) as source:
        return list(source)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[MaildirSink]:
    with contextlib.closing(MaildirSink(str(path))) as sink:
        yield sink


def mail(text: str, number: int = 0, **known: object) -> Mail:
    return Mail.read(Origin(text.encode(), f"{number:032x}", number, **known))


# The source


def test_mails_of_new_and_cur_in_the_order_of_their_names(tmp_path):
    path = make_maildir(tmp_path / "in", [b"a", b"b", b"c"])
    (path / "cur" / "1700000000.M0000005.example:2,RS").write_bytes(b"between a and b")
    (path / "new" / ".hidden").write_bytes(b"no mail")
    (path / "new" / "folder").mkdir()
    (path / "tmp" / "half").write_bytes(b"being delivered")
    os.utime(path / "new" / "1700000000.M000000.example", (1.5, 1.5))
    origins = read(path)
    assert [origin.mime for origin in origins] == [b"a", b"between a and b", b"b", b"c"]
    assert [origin.flags for origin in origins] == [None, "RS", None, None]
    assert origins[0].received == 1.5
    assert len({origin.id for origin in origins}) == 4


def test_the_id_stays_when_a_reader_moves_and_flags_the_mail(tmp_path):
    path = make_maildir(tmp_path / "in", [b"a"])
    (before,) = read(path)
    os.rename(path / "new" / "1700000000.M000000.example", path / "cur" / "1700000000.M000000.example:2,S")
    (after,) = read(path)
    assert (before.id, before.flags, after.flags) == (after.id, None, "S")


def test_the_id_tells_two_maildirs_apart(tmp_path):
    assert read(make_maildir(tmp_path / "a", [b"x"]))[0].id != read(make_maildir(tmp_path / "b", [b"x"]))[0].id


def test_a_mail_that_is_moved_between_the_listing_and_its_turn(tmp_path):
    path = make_maildir(tmp_path / "in", [b"a", b"b", b"c"])
    with contextlib.closing(MaildirSource(str(path))) as source:
        os.rename(path / "new" / "1700000000.M000001.example", path / "cur" / "1700000000.M000001.example:2,F")
        os.unlink(path / "new" / "1700000000.M000002.example")
        assert [(origin.mime, origin.flags) for origin in source] == [(b"a", None), (b"b", "F")]


def test_a_mail_that_is_listed_in_both_folders_is_one_mail(tmp_path):
    path = make_maildir(tmp_path / "in", [b"a"])
    os.link(path / "new" / "1700000000.M000000.example", path / "cur" / "1700000000.M000000.example:2,")
    assert len(read(path)) == 1


def test_two_mails_of_one_name_are_two_mails(tmp_path):
    path = make_maildir(tmp_path / "in", [])
    (path / "new" / "1.host").write_bytes(b"one")
    (path / "cur" / "1.host:2,S").write_bytes(b"two")
    (path / "cur" / "1.host:2,F").write_bytes(b"three")
    (path / "cur" / "1.host:2,FS").write_bytes(b"three")
    origins = read(path)
    assert sorted((origin.mime, origin.flags) for origin in origins) == [(b"one", None), (b"three", "F"), (b"two", "S")]
    with opened(tmp_path / "out") as sink:
        sink.store([Mail.read(origin) for origin in origins])
    assert sorted(read_maildir(tmp_path / "out")) == [b"one", b"three", b"two"]


def test_of_two_mails_of_one_name_one_is_moved_before_its_turn(tmp_path):
    path = make_maildir(tmp_path / "in", [])
    (path / "cur" / "1.host:2,").write_bytes(b"one")
    (path / "cur" / "1.host:2,T").write_bytes(b"two")
    with contextlib.closing(MaildirSource(str(path))) as source:
        os.rename(path / "cur" / "1.host:2,T", path / "cur" / "1.host:2,ST")
        assert sorted(origin.mime for origin in source) == [b"one", b"two"]


def test_a_mail_that_is_moved_while_it_is_looked_for(tmp_path, monkeypatch):
    path = make_maildir(tmp_path / "in", [b"a"])
    with contextlib.closing(MaildirSource(str(path))) as source:
        find, flags = source._find_moved, iter("DFPRST")
        (path / "new" / "1700000000.M000000.example").rename(path / "cur" / "1700000000.M000000.example:2,")

        def find_and_move(unique):
            (found,) = find(unique)
            if flag := next(flags, None):
                (path / found).rename(f"{path / found}{flag}")
            return [found]

        monkeypatch.setattr(source, "_find_moved", find_and_move)
        assert [(origin.mime, origin.flags) for origin in source] == [(b"a", "DFPRST")]
        monkeypatch.setattr(source, "_find_moved", lambda unique: ["cur/nowhere"])
        with pytest.raises(SourceError, match=r"maildir:.*in: new/1.*example: it is moved all the time; run again when"):
            list(source)


def test_names_sort_by_their_time_whatever_its_number_of_digits(tmp_path):
    path = make_maildir(tmp_path / "in", [b"2023"])
    (path / "new" / "999999999.M1.example").write_bytes(b"2001")
    (path / "new" / "no time").write_bytes(b"whenever")
    assert [origin.mime for origin in read(path)] == [b"2001", b"2023", b"whenever"]


@pytest.mark.parametrize("name", ["1.example,E=x%0Dy@z", "1.example,E=x%0Ay@z"])
def test_a_sender_of_two_lines_is_none(tmp_path, name):
    path = make_maildir(tmp_path / "in", [])
    (path / "new" / name).write_bytes(b"a")
    (origin,) = read(path)
    assert Mail.read(origin).envelope is None


@pytest.mark.parametrize("missing", ["cur", "new", "tmp"])
def test_a_folder_may_be_missing(tmp_path, missing):
    path = make_maildir(tmp_path / "in", [b"a"])
    (path / "cur" / "b:2,").write_bytes(b"b")
    shutil.rmtree(path / missing)
    assert [origin.mime for origin in read(path)] == {"cur": [b"a"], "new": [b"b"], "tmp": [b"a", b"b"]}[missing]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "there is no such folder"),
        (lambda path: path.mkdir(), "it has neither new/ nor cur/"),
        (lambda path: path.write_bytes(b"From a"), "it has neither new/ nor cur/"),
    ],
)
def test_what_is_no_maildir(tmp_path, make, why):
    make(tmp_path / "in")
    with pytest.raises(SourceError, match=f"maildir:.*in is no Maildir: {why}"):
        MaildirSource(str(tmp_path / "in"))


def test_a_maildir_that_vanishes(tmp_path):
    path = make_maildir(tmp_path / "in", [b"a", b"b"])
    with contextlib.closing(MaildirSource(str(path))) as source:
        origins = iter(source)
        next(origins)
        shutil.rmtree(path)
        with pytest.raises(SourceError, match=r"maildir:.*in is gone"):
            next(origins)


def test_a_mail_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with contextlib.closing(MaildirSource(str(make_maildir(tmp_path / "in", [b"a"])))) as source:
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(SourceError, match=r"new/1700.*: Permission denied; make it readable or move it away"):
            list(source)


# The sink


def test_it_makes_the_maildir(tmp_path):
    with opened(tmp_path / "some" / "out") as sink:
        sink.store([mail("one", 1)])
    assert read_maildir(tmp_path / "some" / "out") == [b"one"]
    assert stat.S_IMODE((tmp_path / "some" / "out" / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("in_one", [True, False])
def test_a_group_is_stored_byte_for_byte(tmp_path, monkeypatch, in_one):
    monkeypatch.setattr(maildir_sink, "syncs_in_one", lambda files: in_one and _files.syncs_in_one(files))
    monkeypatch.setattr(maildir_sink, "PORTION", 20_000)  # and in several of these
    real = [text for _, text in real_mails()]
    with opened(tmp_path / "out") as sink:
        sink.store([Mail.read(Origin(text, f"{number:032x}", number)) for number, text in enumerate(real)])
    assert read_maildir(tmp_path / "out") == real
    assert list((tmp_path / "out" / "tmp").iterdir()) == []


def test_what_a_maildir_has_no_place_for_is_in_the_name(tmp_path):
    with opened(tmp_path / "out") as sink:
        sink.store([mail("x", 7, envelope="a,b/c:d@example.org", received=1795498307.5)])
    (file,) = (tmp_path / "out" / "new").iterdir()
    assert file.name == f"1795498307.M000000000007Q{7:032x}.mqcore,E=a%2Cb%2Fc%3Ad@example.org"
    assert file.stat().st_mtime == 1795498307.5
    (origin,) = read(tmp_path / "out")
    assert (origin.envelope, origin.received) == ("a,b/c:d@example.org", 1795498307.5)


@pytest.mark.parametrize("envelope", ["", None, "\udcff@example.org", "élan@example.org"])
def test_any_sender_survives(tmp_path, envelope):
    with opened(tmp_path / "out") as sink:
        sink.store([mail("x", envelope=envelope)])
    assert read(tmp_path / "out")[0].envelope == envelope


def test_a_sender_too_long_for_a_name_is_left_out():
    assert maildir.make_name(mail("x", envelope="a" * 300)).endswith(".mqcore")


def test_flags_are_kept(tmp_path):
    with opened(tmp_path / "out") as sink:
        sink.store([mail("read", 1, flags="RS"), mail("old", 2, flags=""), mail("new", 3)])
    assert sorted(file.name.partition(":")[2] for file in (tmp_path / "out" / "cur").iterdir()) == ["2,", "2,RS"]
    assert [origin.flags for origin in read(tmp_path / "out")] == ["RS", "", None]


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ("new/1.example", None),
        ("new/1.example:2,", ""),
        ("new/1.example:2,S", "S"),
        ("cur/1.example", ""),
        ("cur/1.example:", ""),
        ("cur/1.example:2,FSab", "FSab"),
        ("cur/1.example:1,experimental", ""),
        ("cur/1.example:2,S:2,T", "S:2,T"),
        ("cur/1.example:\udcff", ""),
    ],
)
def test_folder_and_info_part_are_kept_as_they_are(tmp_path, file, flags):
    path = make_maildir(tmp_path / "in", [])
    (path / file).write_bytes(b"x")
    (origin,) = read(path)
    assert (origin.file, origin.flags) == (file, flags)
    with opened(tmp_path / "out") as sink:
        sink.store([Mail.read(origin)])
    (stored,) = read(tmp_path / "out")
    assert stored.file.partition("/")[0] == file.partition("/")[0]
    assert stored.file.partition(":")[1:] == file.partition(":")[1:]


def test_an_info_part_too_long_for_our_name_is_left_out(tmp_path):
    path = make_maildir(tmp_path / "in", [])
    (path / "cur" / f"1:2,{'S' * 200}").write_bytes(b"x")
    with opened(tmp_path / "out") as sink:
        sink.store([Mail.read(origin) for origin in read(path)])
    assert read_maildir(tmp_path / "out") == [b"x"]


def test_order_is_kept_whatever_the_dates(tmp_path):
    """Of what comes from a file: a name's time is no less than that of the mail before it."""
    path = make_maildir(tmp_path / "in", [b"a", b"b", b"c", b"d"])
    for file, time in zip(sorted((path / "new").iterdir()), (999_999_999, 1_800_000_000, 7, -5), strict=True):
        os.utime(file, (time, time))
    mails = [Mail.read(origin) for origin in read(path)]
    with opened(tmp_path / "out") as sink:
        sink.store(mails[::-1])
    assert [origin.mime for origin in read(tmp_path / "out")] == [b"a", b"b", b"c", b"d"]
    assert read_maildir(tmp_path / "out") == [b"a", b"b", b"c", b"d"]
    assert [origin.received for origin in read(tmp_path / "out")] == [999_999_999, 1_800_000_000, 7, -5]


def test_a_second_run_knows_what_was_there_whatever_readers_did_with_it(tmp_path):
    path = tmp_path / "out"
    with opened(path) as sink:
        sink.store([mail("a", 1), mail("b", 2), mail("c", 3)])
        assert f"{1:032x}" not in sink  # for this run's own source yields each mail once
    names = sorted(file.name for file in (path / "new").iterdir())
    os.rename(path / "new" / names[1], path / "cur" / f"{names[1]}:2,S")
    os.unlink(path / "new" / names[2])
    with opened(path) as sink:
        assert [f"{number:032x}" in sink for number in range(5)] == [False, True, True, True, False]


def test_a_run_that_was_killed_leaves_nothing_half_written(tmp_path):
    path = make_maildir(tmp_path / "out", [])
    (path / "tmp" / maildir.make_name(mail("half", 1))).write_bytes(b"ha")
    (path / "tmp" / "another's").write_bytes(b"half")
    with opened(path) as sink:
        assert f"{1:032x}" not in sink
    assert [file.name for file in (path / "tmp").iterdir()] == ["another's"]


def test_two_runs_at_once(tmp_path):
    with (
        opened(tmp_path / "out"),
        pytest.raises(SinkError, match=r"another mqcore writes to maildir:.*out; wait until"),
    ):
        MaildirSink(str(tmp_path / "out"))
    with opened(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: make_maildir(path / "other", []),
            "maildir:{path} is no Maildir but a folder of other things; name a new or an empty folder",
        ),
        (lambda path: path.write_bytes(b"x"), "cannot write to maildir:{path}: Not a directory"),
    ],
)
def test_what_cannot_be_written_to(tmp_path, make, message):
    path = tmp_path / "out"
    make(path)
    with pytest.raises(SinkError) as raised:
        MaildirSink(str(path))
    assert str(raised.value) == message.format(path=path)


def test_what_is_no_group_of_files(tmp_path):
    """Nothing is made then."""
    tmp = os.open(tmp_path, os.O_RDONLY)
    try:
        group = _files.Group(tmp, in_one=False)
        for wrong in ([None, tmp, b"a", b"x", None], [b"a", tmp, None, b"x", None], [b"a", tmp, b"a", "x", None],
                      [b"a", "tmp", b"a", b"x", None], [b"a", tmp, b"a", b"x", "now"]):  # fmt: skip
            with pytest.raises(TypeError):
                group.add(*wrong)
        assert group.unwritten == 0
        group.write()
        group.publish()
        group.undo()
        assert list(tmp_path.iterdir()) == []
    finally:
        os.close(tmp)
    group.add(b"a", tmp, b"b", b"x", None)
    assert group.unwritten == 1
    for _ in range(2):
        with pytest.raises(OSError, match=r"Bad file descriptor: b'a'"):
            group.write()
    if _files.syncs_in_one(100):  # where syncfs tells of errors: from Linux 5.8 on
        with pytest.raises(OSError, match="Bad file descriptor"):
            _files.Group(-1, in_one=True).publish()
    assert _files.syncs_in_one(1) is False


def test_a_group_takes_no_place_of_another_file_and_undoes_its_own_only(tmp_path):
    for folder in ("tmp", "new"):
        (tmp_path / folder).mkdir()
    (tmp_path / "new" / "taken").write_bytes(b"was there")
    (tmp_path / "tmp" / "planted").write_bytes(b"was there, too")
    tmp, new = (os.open(tmp_path / folder, os.O_RDONLY) for folder in ("tmp", "new"))
    try:
        group = _files.Group(tmp, in_one=False)
        for file, name in ((b"1", b"taken"), (b"2", b"free")):
            group.add(file, new, name, b"ours", None)
        group.write()
        group.publish()
        files = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
        assert files == {"taken": b"was there", "free": b"ours"}
        group.undo()
        other = _files.Group(tmp, in_one=False)
        other.add(b"planted", new, b"other", b"ours", None)
        with pytest.raises(FileExistsError):
            other.write()
        other.undo()
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["taken"]
        assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["planted"]
    finally:
        os.close(tmp)
        os.close(new)


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk, opened(disk / "out") as sink:
        sink.store([mail("x" * 10_000, 1)])
        with pytest.raises(SinkFull, match=r"cannot write to maildir:.*out: No space left on device"):
            sink.store([mail("x" * 400_000, number) for number in range(2, 12)])
        sink.store([mail("y" * 10_000, 20)])  # what failed takes no room
        assert [len(text) for text in read_maildir(disk / "out")] == [10_000, 10_000]
