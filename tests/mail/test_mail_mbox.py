"""The mbox format, and an mbox as a source."""

from __future__ import annotations

import contextlib
import os
from calendar import timegm
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mail_tools import read_mbox, real_mails, write_mbox

from mqcore.mail import Mail, Origin, SourceError
from mqcore.mail.mbox import _usual
from mqcore.mail.mbox import format as mbox
from mqcore.mail.mbox import source as mbox_source
from mqcore.mail.mbox.sink import MboxSink
from mqcore.mail.mbox.source import MboxSource

FROM = b"From alice@example.org Tue Nov 24 05:31:47 2026\n"


def read(path: Path) -> list[Origin]:
    with contextlib.closing(MboxSource(str(path))) as source:
        origins = list(source)
        assert source.done == source.total or not origins
        return origins


def mimes(tmp_path: Path, content: bytes) -> list[bytes]:
    path = tmp_path / "mbox"
    path.write_bytes(content)
    return [origin.mime for origin in read(path)]


# The format


bits = st.sampled_from(
    [b"From ", b">", b"\n", b"\r\n", b"\r", b"\n\n", b"x", b"From a Tue Nov 24 05:31:47 2026\n", b"\0"]
)
mails = st.lists(bits, max_size=8).map(b"".join)


@given(st.lists(mails, min_size=1, max_size=5), st.sampled_from([FROM, FROM.replace(b"\n", b"\r\n"), None]))
@example([b"", b"\n", b"\n\n", b"x", b"x\n", b""], None)
@example([b"x\r\n", b"", b"x", b"\r\n"], FROM.replace(b"\n", b"\r\n"))
def test_any_bytes_are_read_back_as_they_were_written(tmp_path_factory, written, from_line):
    if from_line and from_line.endswith(b"\r\n"):
        written = [mail for mail in written if not mail.endswith(b"\r")]  # CR, LF would be taken for CRLF
    mails = [Mail.read(Origin(mail, "", 0, "alice@example.org", 0, from_line)) for mail in written]
    path = tmp_path_factory.getbasetemp() / "round-trip"
    tail = b""
    with path.open("wb") as file:
        for mail in mails:  # one by one, as over several runs: the tail is all that is known of what is there
            for piece in mbox.join([mail], tail):
                file.write(piece)
                tail = (tail + piece)[-3:]
    assert [origin.mime for origin in read(path)] == written
    assert b"".join(mbox.join(mails, b"")) == path.read_bytes()


from_lines = st.sampled_from(
    [
        *(FROM, FROM.replace(b"\n", b"\r\n"), FROM.replace(b"\n", b"\r"), None),
        *(b"From ???@???\r", b"From \rsent Mon Jul 11 12:08:34 2011\n"),
    ]
)


@given(st.lists(st.tuples(mails, from_lines, st.booleans()), min_size=1, max_size=6))
@example([(b"", FROM.replace(b"\n", b"\r"), True), (b"", FROM, True), (b"x", None, False)])
@example([(b"x\n\r", FROM.replace(b"\n", b"\r"), False), (b"\r", b"From ???@???\r", True), (b"\n", b"From ???@???\r", False)])
@example([(b"sent Mon Jul 11 12:08:34 2011", b"From ???@???\r", False), (b"x", None, False)])
def test_mails_of_all_line_ends_are_read_back_as_they_were_written(tmp_path_factory, written):
    """`known`: whether it is known how the lines of the mail before end, as within a run; as over several it is not."""
    path = tmp_path_factory.getbasetemp() / "line-ends"
    written = [(mail + b"." if (line or b"").endswith(b"\r\n") and mail.endswith(b"\r") else mail, line, known)
               for mail, line, known in written]  # CR, LF would be taken for CRLF
    content, cr = b"", False
    for mail, line, known in written:
        sender = mbox.parse_from_line(line or b"").sender
        (piece,) = mbox.join([Mail.read(Origin(mail, "", 0, sender, 0, line))], content[-3:], cr=cr and known)
        cr = mbox.find_cr(piece.lstrip(b"\r\n")) > 0
        content += piece
    path.write_bytes(content)
    assert [origin.mime for origin in read(path)] == [mail for mail, _, _ in written]


def test_quoting():
    mail = Mail.read(Origin(b"From a\n>From b\nFrom\n From c\n>>From d\n", "", received=0))
    assert list(mbox.join([mail], b"")) == [
        b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n>From a\n>>From b\nFrom\n From c\n>>>From d\n\n"
    ]


@pytest.mark.parametrize(
    ("line", "sender", "received"),
    [
        (b"From alice@example.org Tue Nov 24 05:31:47 2026\n", "alice@example.org", 1795498307),
        (b"From alice@example.org  Tue Nov  3 05:31:47 2026\r\n", "alice@example.org", 1793683907),
        (b"From - Tue Nov 24 05:31:47 2026\n", None, 1795498307),
        (b"From alice at example.org  Tue Nov 24 05:31:47 2026\n", "alice at example.org", 1795498307),
        (b"From a@example.org Tue Nov 24 05:31:47 CET 2026\n", "a@example.org", 1795498307),
        (b"From a@example.org Tue Nov 24 05:31:47 2026 +0100\n", "a@example.org", 1795494707),
        (b"From a@example.org Tue Nov 24 05:31 2026\n", "a@example.org", 1795498260),
        (b"From MAILER-DAEMON Tue Nov 24 05:31:47 2026\n", "", 1795498307),
        (b"From alice@example.org\n", "alice@example.org", None),
        # Thunderbird, Google Takeout, Eudora, git, public-inbox
        (b"From \n", None, None),
        (b"From - Thu, 26 Nov 2026 05:31:47 GMT\r\n", None, 1795671107),
        (b"From 1798765432101234567@xxx Tue Nov 24 05:31:47 +0000 2026\r\n", None, 1795498307),
        (b"From x@xxx Tue Nov 24 05:31:47 2026\n", None, 1795498307),
        (b"From ???@??? Tue Nov 24 05:31:47 2026\r", None, 1795498307),
        (b"From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\n", None, 1000684800),
        (b"From mboxrd@z Thu Jan  1 00:00:00 1970\n", None, 0),
        (b"From 12@xxx.example Tue Nov 24 05:31:47 2026\n", "12@xxx.example", 1795498307),
        # pipermail, RFC 5322
        (b"From alice at example.org  Tue, 24 Nov 2026 05:31:47 +0100\n", "alice at example.org", 1795494707),
        (b"From a@example.org Tue, 24 Nov 2026 05:31:47 +0530 (IST)\n", "a@example.org", 1795478507),
        (b"From a@example.org 24 Nov 2026 05:31:47 -0800\n", "a@example.org", 1795527107),
        (b"From a@example.org 4 Nov 98 5:31 PST\n", "a@example.org", 910186260),
        (b"From a@example.org Tue Nov 24 05:31:47 EST 2026\n", "a@example.org", 1795516307),
        (b"From a@example.org Tue Nov 24 05:31:47 2026 remote from host\n", "a@example.org", 1795498307),
        (b"From Tue Nov 24 05:31:47 2026\n", None, 1795498307),
        (b"From <> Tue Nov 24 05:31:47 2026\n", "", 1795498307),
        (b"From \rsent Mon Jul 11 12:08:34 2011\n", "sent", 1310386114),
        (b"From now on we meet on Tuesdays\n", "now", None),
        (b"From a@example.org Tue Nov 24 05:31:47 0000\n", "a@example.org", None),
        (b"From ", None, None),
        (b"From \xff@example.org Tue Nov 24 05:31:47 2026\n", "\udcff@example.org", 1795498307),
    ],
)
def test_what_a_from_line_tells(line, sender, received):
    assert mbox.parse_from_line(line) == (sender, received)
    assert _usual.parse_from_line(line) == (sender, received)


PARTS = (b"From ", b"alice@example.org", b"MAILER-DAEMON", b"-", b" ", b"Tue", b"Nov", b"Xxx", b"24", b" 4", b"05:31:47")
PARTS += (b"2026", b"1999", b"0999", b"99", b"Jan", b"\n", b"\r", b"\n\n", b">From ", b"\xff", b"\nFrom ")
PARTS += (b"Tue Nov 24 05:31:47 2026", b"Wed Feb 29 23:59:59 2028", b"Thu Jan  1 00:00:00 1970", b"Sun Dec 31 24:00:00 1900")


@given(st.lists(st.sampled_from(PARTS)).map(b"".join), st.booleans(), st.booleans())
def test_what_is_usual_is_read_as_all_else(raw, begins, last):
    if begins:
        raw = b"From a@example.org Tue Nov 24 05:31:47 2026\n" + raw
    assert _usual.split(raw, last=last) == mbox.split(raw, last=last)
    assert _usual.parse_from_line(raw) == mbox.parse_from_line(raw)
    assert _usual.find_cr(raw) == mbox.find_cr(raw)
    for at in range(-1, len(raw) + 2):
        assert _usual.find_lf(raw, at) == (-1 if at < 0 else raw.find(b"\nFrom ", at))


@given(st.datetimes(datetime(1800, 1, 1), datetime(9999, 12, 31)), st.text("abcMxyz0123456789@.<>?-", min_size=1))
def test_every_date_is_read_as_the_standard_library_has_it(moment, sender):
    line = f"From {sender} {moment:%a %b} {moment.day:2} {moment:%H:%M:%S %Y}\n".encode()
    assert _usual.parse_from_line(line) == mbox.parse_from_line(line)
    assert _usual.parse_from_line(line)[1] == timegm(moment.timetuple())


@pytest.mark.parametrize("text", [b" ", b"\r ", b"Mon ", b"1 ", b"Mon Jan ", b"1 Jan ", b"Mon Jan 1 "])
def test_a_from_line_of_a_million_words_takes_no_time_at_all(text):
    line = b"From " + text * 1_000_000 + b"\n"
    assert mbox.parse_from_line(line).received is None
    mbox.find_cr(line[: mbox.HEAD])
    mbox.find_cr(b"From \r" + line[5 : mbox.HEAD] + b"\nx")


def test_a_from_line_is_kept_as_it_was_until_a_plugin_changes_the_sender():
    line = b"From alice@example.org  Tue Nov 24 05:31:47 CET 2026\n"
    mail = Mail.read(Origin(b"x\n", "", envelope="alice@example.org", received=1795498307, from_line=line))
    assert mbox.make_from_line(mail) == line
    mail.envelope = "bob@example.org"
    assert mbox.make_from_line(mail) == b"From bob@example.org Tue Nov 24 05:31:47 2026\n"
    mail.envelope = ""
    assert mbox.make_from_line(mail) == b"From MAILER-DAEMON Tue Nov 24 05:31:47 2026\n"
    mail.json["envelope"] = "x\nFrom y"
    assert mbox.make_from_line(mail).count(b"\n") == 1


# The source


def test_mails_are_what_the_standard_library_reads(tmp_path):
    path = write_mbox(tmp_path / "mbox", 1000)
    origins = read(path)
    assert [origin.mime for origin in origins] == read_mbox(path)
    assert {origin.envelope for origin in origins} == {f"sender{number}@example.org" for number in range(7)}
    assert {origin.received for origin in origins} == {1795498307}
    assert len({origin.id for origin in origins}) == 1000


def test_real_mails(tmp_path):
    real = [mail for _, mail in real_mails()]
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(mbox.join([Mail.read(Origin(mail, "")) for mail in real], b"")))
    assert [origin.mime for origin in read(path)] == real


@pytest.mark.parametrize("block", [6, 7, 64, 1000])
def test_where_a_block_ends_makes_no_difference(tmp_path, monkeypatch, block):
    path = write_mbox(tmp_path / "mbox", 20)
    whole = read(path)
    monkeypatch.setattr(mbox_source, "BLOCK", block)
    assert read(path) == whole


def test_an_empty_file_has_no_mails(tmp_path):
    assert mimes(tmp_path, b"") == []
    assert mimes(tmp_path, b"\n\r\n") == []


def test_empty_lines_before_the_first_mail_are_passed_over(tmp_path):
    assert mimes(tmp_path, b"\n\n" + FROM + b"x\n\n") == [b"x\n"]


def test_the_last_mail_may_lack_its_empty_line_or_its_newline(tmp_path):
    assert mimes(tmp_path, FROM + b"a\n\n" + FROM + b"b\n") == [b"a\n", b"b\n"]
    assert mimes(tmp_path, FROM + b"a\n\n" + FROM + b"half a li") == [b"a\n", b"half a li"]


def test_a_file_that_ends_in_a_from_line(tmp_path):
    assert mimes(tmp_path, FROM + b"a\n\n" + FROM) == [b"a\n", b""]
    assert mimes(tmp_path, FROM + b"a\n\nFrom ali") == [b"a\n", b""]


def test_crlf_stays_crlf(tmp_path):
    crlf = FROM.replace(b"\n", b"\r\n")
    assert mimes(tmp_path, crlf + b"a: b\r\n\r\n>From x\r\n\r\n" + crlf + b"c\r\n") == [
        b"a: b\r\n\r\nFrom x\r\n",
        b"c\r\n",
    ]


CR = FROM.replace(b"\n", b"\r")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (CR + b"a: b\r\r>From x\r\r" + CR + b"c\r", [b"a: b\r\rFrom x\r", b"c\r"]),
        (b"From ???@???\ra: b\r\rhello\r\r" + CR + b"c\r\r", [b"a: b\r\rhello\r", b"c\r"]),
        (FROM + b"1\n\n" + CR + b"2\r\rtext\r\n" + FROM + b"3\rFrom 3\n\n", [b"1\n", b"2\r\rtext\r", b"3\rFrom 3\n"]),
        (CR + b"1\r\r" + FROM + b"2\n\n" + CR + b"3", [b"1\r", b"2\n", b"3"]),
        (FROM + b"1\n\nFrom \rsent Mon Jul 11 12:08:34 2011\n2\n\n" + FROM + b"3\n", [b"1\n", b"2\n", b"3\n"]),
        (b"From \rsent Mon Jul 11 12:08:34 2011\n\n" + FROM + b"2\n", [b"sent Mon Jul 11 12:08:34 2011\n", b"2\n"]),
        (b"From a\rFrom b Mon Jul 11 12:08:34 2011\n2\n", [b"", b"2\n"]),
        (FROM.replace(b"\n", b"\r\r\n") + b"1\r\r\n\r\r\n", [b"1\r\r\n\r\r\n"]),
        (b"From x\rSubject: 1\r\rtext\n\n" + FROM + b"2\n", [b"Subject: 1\r\rtext\n", b"2\n"]),
    ],
    ids=["all", "no date", "one", "some", "in the middle", "no mail", "in a row", "twice", "then LF"],
)
def test_where_a_cr_ends_the_from_line(tmp_path, content, expected):
    assert mimes(tmp_path, content) == expected


@pytest.mark.parametrize("groups", [1, 3])
def test_an_mbox_of_cr_becomes_the_same_mbox(tmp_path, groups):
    content = b"".join(CR + b"Subject: %d\r\r>From x\r\r" % number for number in range(9)) + b"From ???@???\r\r"
    (tmp_path / "mbox").write_bytes(content)
    mails = [Mail.read(origin) for origin in read(tmp_path / "mbox")]
    assert len(mails) == 10
    with contextlib.closing(MboxSink(str(tmp_path / "out"))) as sink:
        for number in range(groups):
            sink.store(mails[number * 10 // groups : (number + 1) * 10 // groups])
    assert (tmp_path / "out").read_bytes() == content


def test_memory_holds_no_more_of_an_mbox_of_cr_than_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(mbox_source, "BLOCK", 4096)
    (tmp_path / "mbox").write_bytes((CR + b"x" * 1000 + b"\r\r") * 100)
    sizes = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: sizes.append(size) or real(fd, size, offset))
    assert len(read(tmp_path / "mbox")) == 100
    assert max(sizes) <= 4096


def test_mails_that_are_no_mail(tmp_path):
    junk = [b"\0\xff\n\n\n", b": :\n", b"no header at all\n", b"\xf0\x9f\x98\n" * 3]
    assert mimes(tmp_path, b"".join(FROM + mail + b"\n" for mail in junk)) == junk


def test_the_id_tells_source_place_and_content_apart(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes((FROM + b"same\n\n") * 2)
    other.write_bytes(FROM + b"same\n\n")
    first, second = read(one)
    (third,) = read(other)
    assert len({first.id, second.id, third.id}) == 3
    assert [origin.id for origin in read(one)] == [first.id, second.id]
    other.write_bytes(FROM + b"else\n\n")
    assert read(other)[0].id != third.id
    (tmp_path / "link").symlink_to(one)
    assert read(tmp_path / "link")[0].id == first.id


def test_what_is_delivered_after_the_start_is_left_for_the_next_run(tmp_path):
    path = write_mbox(tmp_path / "mbox", 2)
    with contextlib.closing(MboxSource(str(path))) as source:
        with path.open("ab") as file:
            file.write(FROM + b"new\n\n")
        assert len(list(source)) == 2


# Bad input: one message each


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read mbox:{path}: No such file or directory"),
        (lambda path: path.mkdir(), "cannot read mbox:{path}: it is a folder; for a Maildir say maildir:{path}"),
        (lambda path: os.mkfifo(path), "cannot read mbox:{path}: it is no regular file; save it as one first"),
        (
            lambda path: path.write_bytes(b"\x7fELF junk"),
            "mbox:{path} is no mbox: it begins with b'\\x7fELF junk', not with 'From '; name another file",
        ),
    ],
)
def test_what_cannot_be_read(tmp_path, make, message):
    path = tmp_path / "mbox"
    make(path)
    with pytest.raises(SourceError) as raised:
        MboxSource(str(path))
    assert str(raised.value) == message.format(path=path)


def test_a_file_that_becomes_shorter(tmp_path):
    path = write_mbox(tmp_path / "mbox", 10)
    with contextlib.closing(MboxSource(str(path))) as source:
        os.truncate(path, 100)
        with pytest.raises(SourceError, match=r"became shorter while it was read, and ends at byte 100 now; run again"):
            list(source)


def test_a_disk_that_fails(tmp_path, monkeypatch):
    def fail(fd, size, offset):
        if offset > 1000:
            raise OSError(5, "Input/output error")
        return pread(fd, size, offset)

    pread = os.pread
    path = write_mbox(tmp_path / "mbox", 10)
    monkeypatch.setattr(mbox_source, "BLOCK", 512)
    with contextlib.closing(MboxSource(str(path))) as source:
        monkeypatch.setattr(os, "pread", fail)
        origins = iter(source)
        next(origins)
        with pytest.raises(SourceError, match=r"cannot read mbox:.*mbox at byte \d+: Input/output error"):
            list(origins)
