"""mbox and Maildir files as other programs make them: those that are here do, of others it is known what theirs look like."""

from __future__ import annotations

import contextlib
import mailbox
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from test_mail_maildir import read as read_maildir
from test_mail_mbox import read as read_mbox

from mqcore.mail import Mail
from mqcore.mail.maildir.sink import MaildirSink
from mqcore.mail.mbox.sink import MboxSink

MAIL = b"Subject: hi\n\nhello\n From me\n"


def run(*command, stdin=MAIL, **options):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    subprocess.run(list(map(str, command)), input=stdin, check=True, timeout=60, capture_output=True, **options)


def procmail(path, kind):
    target = f"{path}/" if kind == "maildir" else path
    run("procmail", "-f", "alice@example.org", "-m", f"MAILDIR={path.parent}", f"DEFAULT={target}", "/dev/null")


def maildrop(path, kind):
    if kind == "maildir":
        mailbox.Maildir(path)
    rules = path.with_name("rules")
    rules.write_text(f'to "{path}"\n')
    rules.chmod(0o600)
    run("maildrop", "-f", "alice@example.org", "./rules", cwd=path.parent)


def mutt(path, kind):
    """Its copy of what it sends."""
    kind = {"mbox": "mbox", "maildir": "Maildir"}[kind]
    settings = f"set sendmail=/bin/true record={path} mbox_type={kind} copy=yes from=alice@example.org"
    run("mutt", "-n", "-F", "/dev/null", "-e", settings, "-s", "hi", "bob@example.org", stdin=b"hello\n From me\n")


def dovecot(path, kind):
    """It delivers nothing as root; and nobody else may come to where these tests have their files."""
    user, name = {}, pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:
        name, user = "nobody", {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        location = f"maildir:{folder}/in" if kind == "maildir" else f"mbox:{folder}/folders:INBOX={folder}/in"
        Path(folder, "dovecot.conf").write_text(
            f"first_valid_uid = 0\nssl = no\nlog_path = /dev/stderr\nhostname = host.example\nbase_dir = {folder}/run\n"
            f"postmaster_address = postmaster@example.org\nmail_location = {location}\n"
        )
        environment = os.environ | {"USER": name, "HOME": folder}
        command = ("/usr/lib/dovecot/dovecot-lda", "-c", f"{folder}/dovecot.conf", "-f", "alice@example.org")
        run(*command, env=environment, **user)
        if kind == "maildir":
            shutil.copytree(f"{folder}/in", path, dirs_exist_ok=True)
        else:
            with path.open("ab") as file:
                file.write(Path(folder, "in").read_bytes())


def python(path, kind):
    box = mailbox.mbox(path) if kind == "mbox" else mailbox.Maildir(path)
    with contextlib.closing(box):
        if kind == "mbox":
            message = mailbox.mboxMessage(MAIL)
            message.set_from("alice@example.org", True)
        else:
            message = mailbox.MaildirMessage(MAIL)
            message.set_flags("S")  # which stays in new/
        box.add(message)


@pytest.fixture(params=[procmail, maildrop, mutt, dovecot, python], ids=lambda program: program.__name__)
def deliver(request):
    return request.param


def test_an_mbox_of(tmp_path, deliver):
    path = tmp_path / "in"
    deliver(path, "mbox")
    deliver(path, "mbox")
    first, second = read_mbox(path)
    for origin in (first, second):
        assert origin.envelope == "alice@example.org"
        assert origin.received > 1_500_000_000
        assert b"Subject: hi\n" in origin.mime and origin.mime.endswith(b"\n\nhello\n From me\n")
    copy(MboxSink(str(tmp_path / "out")), [first, second])
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_a_maildir_of(tmp_path, deliver):
    path = tmp_path / "in"
    deliver(path, "maildir")
    deliver(path, "maildir")
    origins = read_maildir(path)
    assert len(origins) == 2
    for origin in origins:
        assert origin.envelope is None
        assert origin.received > 1_500_000_000
        assert origin.mime.endswith(b"\n\nhello\n From me\n")
    copy(MaildirSink(str(tmp_path / "out")), origins)
    copies = read_maildir(tmp_path / "out")
    assert [origin.mime for origin in copies] == [origin.mime for origin in origins]
    for before, after in zip(origins, copies, strict=True):
        assert before.flags == after.flags
        assert before.file.partition("/")[0] == after.file.partition("/")[0]


def copy(sink, origins):
    with contextlib.closing(sink):
        sink.store([Mail.read(origin) for origin in origins])


FILES = {
    # Two blanks, and addresses that robots are not to find.
    "pipermail": (
        b"From alice at example.org  Tue Nov 24 05:31:47 2026\nFrom: alice at example.org (Alice)\n\nhello\n\n"
        b"From bob at example.org  Tue, 24 Nov 2026 06:31:47 +0100\nFrom: bob at example.org (Bob)\n\n>From me\n\n\n",
        [("alice at example.org", 1795498307), ("bob at example.org", 1795498307)],
    ),
    "Google Takeout": (
        b"From 1798765432101234567@xxx Tue Nov 24 05:31:47 +0000 2026\r\nX-GM-THRID: 1798765432101234567\r\n\r\nhello\r\n\r\n"
        b"From 1798765432101234568@xxx Tue Nov 24 05:31:48 +0000 2026\r\nX-Gmail-Labels: Spam\r\n\r\n>From me\r\n\r\n",
        [(None, 1795498307), (None, 1795498308)],
    ),
    "Thunderbird": (
        b"From - Tue Nov 24 05:31:47 2026\r\nX-Mozilla-Status: 0001\r\nX-Mozilla-Status2: 00000000\r\n\r\nhello\r\n\r\n"
        b"From \r\nX-Mozilla-Status: 0001\r\nX-Mozilla-Keys:                      \r\n\r\n>From me\r\n\r\n",
        [(None, 1795498307), (None, None)],
    ),
    "Eudora for the Macintosh": (
        b"From ???@??? Tue Nov 24 05:31:47 2026\rSubject: 1\r\rhello\r\r"
        b"From ???@??? Tue Nov 24 05:31:48 2026\rSubject: 2\r\r>From me\r\r",
        [(None, 1795498307), (None, 1795498308)],
    ),
    "git format-patch": (
        b"From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\nFrom: a@example.org\n\n---\n\n"
        b"From 76543210fedcba9876543210fedcba9876543210 Mon Sep 17 00:00:00 2001\nFrom: b@example.org\n\n-- \n2.39.5\n\n",
        [(None, 1000684800), (None, 1000684800)],
    ),
    "public-inbox": (
        b"From mboxrd@z Thu Jan  1 00:00:00 1970\nSubject: 1\n\nhello\n\n"
        b"From mboxrd@z Thu Jan  1 00:00:00 1970\nSubject: 2\n\n>From me\n\n",
        [(None, 0), (None, 0)],
    ),
    "mod_mbox": (
        b"From dev-return-1-a=example.org@example.net  Wed Nov  4 05:31:47 2026\nReturn-Path: <x@example.net>\n\nhello\n\n"
        b"From MAILER-DAEMON Wed Nov  4 05:31:48 2026\nSubject: failure notice\n\nhello\n\n",
        [("dev-return-1-a=example.org@example.net", 1793770307), ("", 1793770308)],
    ),
    "Pine": (
        b"From MAILER-DAEMON Tue Nov 24 05:31:47 2026\nSubject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n\nx\n\n"
        b"From alice@example.org Tue Nov 24 05:31:47 2026 -0800\nStatus: RO\n\nhello\n\n",
        [("", 1795498307), ("alice@example.org", 1795527107)],
    ),
}


@pytest.mark.parametrize("program", FILES)
def test_a_file_as_made_by(tmp_path, program):
    content, expected = FILES[program]
    path = tmp_path / "in"
    path.write_bytes(content)
    origins = read_mbox(path)
    assert [(origin.envelope, origin.received) for origin in origins] == expected
    copy(MboxSink(str(tmp_path / "out")), origins)
    assert (tmp_path / "out").read_bytes() == content
    copy(MaildirSink(str(tmp_path / "maildir")), origins[::-1])
    assert [origin.mime for origin in read_maildir(tmp_path / "maildir")] == [origin.mime for origin in origins]


MAILDIR_NAMES = [
    "new/1700000000.M741524P4784.host,S=37,W=42",  # Dovecot
    "cur/1700000001.M741524P4784.host,S=37,W=42:2,Sab",  # with keywords
    "new/1700000002.V803I2a0a13M389209.host",  # Postfix
    "cur/1700000003.H1P2Q3.host:2,",  # Exim
    "cur/1700000004.M389209P32361V000000000000FE00I00000000002A0A13_0.host,S=37:2,RS",  # Courier
    "cur/1700000005.R123.host:2,F",  # mutt
    "new/1700000006.32356_0.host",  # procmail
    "cur/1700000007_0.1234.host,U=3,FMD5=7e33429f656f1e6e9d79b29c3f82c57e:2,T",  # OfflineIMAP
    "cur/1700000008.qmail:1,experimental",
]


def test_a_maildir_of_many(tmp_path):
    mailbox.Maildir(tmp_path / "in")
    for number, name in enumerate(MAILDIR_NAMES):
        (tmp_path / "in" / name).write_bytes(b"Subject: %d\n\n" % number)
        os.utime(tmp_path / "in" / name, (1.7e9 + number, 1.7e9 + number))
    (tmp_path / "in" / "dovecot-uidlist").write_text("3 V1 N1\n")
    (tmp_path / "in" / "courierimapkeywords").mkdir()
    (tmp_path / "in" / ".Sent").mkdir()
    origins = read_maildir(tmp_path / "in")
    assert len({origin.id for origin in origins}) == len(MAILDIR_NAMES)
    copy(MaildirSink(str(tmp_path / "out")), origins)
    copies = sorted(read_maildir(tmp_path / "out"), key=lambda origin: origin.received)
    assert [origin.mime for origin in copies] == [b"Subject: %d\n\n" % number for number in range(len(MAILDIR_NAMES))]
    for origin, name in zip(copies, MAILDIR_NAMES, strict=True):
        assert origin.file.partition("/")[0] == name.partition("/")[0]
        assert origin.file.partition(":")[1:] == name.partition(":")[1:]


def test_order_is_kept_from_mbox_to_maildir_to_mbox(tmp_path):
    """Also from 2001 to 2001, where the seconds since 1970 become one digit longer, and where dates go back or are missing."""
    years = (b"2026", b"2001", b"1999", b"2050", b"1969", b"2001", b"")
    lines = [b"From a%d@example.org Tue Nov 24 05:31:47 %b\n" % pair for pair in enumerate(years)]
    content = b"".join(line + b"%d\n\n" % number for number, line in enumerate(lines))
    (tmp_path / "in").write_bytes(content)
    origins = read_mbox(tmp_path / "in")
    copy(MaildirSink(str(tmp_path / "maildir")), origins[3:])
    copy(MaildirSink(str(tmp_path / "maildir")), origins[:3])  # as when they came later out of the plugins
    back = read_maildir(tmp_path / "maildir")
    copy(MboxSink(str(tmp_path / "out")), back)
    again = read_mbox(tmp_path / "out")
    for copies in (back, again):
        assert [origin.mime for origin in copies] == [b"%d\n" % number for number in range(7)]
        assert [origin.envelope for origin in copies] == [f"a{number}@example.org" for number in range(7)]
        assert [origin.received for origin in copies][:6] == [origin.received for origin in origins][:6]


