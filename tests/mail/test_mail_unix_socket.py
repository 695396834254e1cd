"""Listening on Unix sockets: who may connect, and what is at the path before and after."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from smtp_tools import ALL, run, serving

from mqcore.mail import LmtpSource, SmtpSource, SourceError, unix_socket
from mqcore.mail.unix_socket import UnixSocket


@pytest.fixture
def path(tmp_path):
    return tmp_path / "socket"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def leave_behind(path: Path) -> None:
    """As a process that is killed does."""
    script = "import os, sys\nfrom mqcore.mail.unix_socket import UnixSocket\nUnixSocket(sys.argv[1])\nos._exit(0)\n"
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60)
    assert path.is_socket() and not connects(path)


@run
async def test_smtp_on_a_unix_socket(path):
    seen = []

    class Note:
        def mq_smtp_in_message(self, context, mail):
            seen.append(mail.connection.peer)

    async with serving({"10-note": Note()}, at=f"unix:{path}") as it:
        client = await it.connect()
        assert (await client.asks(ALL, 6))[-1] == "250 2.6.0"
        assert it.gateway.source.url == f"smtp:unix:{path}" and it.port is None
    assert len(it.sink.mails) == 1 and seen == [""]
    assert not path.exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_owner_and_group_may_connect(path, umask):
    before = os.umask(umask)
    try:
        with contextlib.closing(UnixSocket(str(path))):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_what_a_killed_process_left_is_replaced(path):
    leave_behind(path)
    with contextlib.closing(LmtpSource(f"unix:{path}")):
        assert connects(path)
    assert not path.exists()


def test_what_somebody_listens_on_is_not(path):
    with contextlib.closing(UnixSocket(str(path))):
        with pytest.raises(SourceError) as raised:
            SmtpSource(f"unix:{path}")
        assert str(raised.value) == f"cannot listen on smtp:unix:{path}: Address already in use; another program has this path"
        assert connects(path)
    assert not path.exists()


def test_nor_is_a_server_that_is_busy(path):
    """Whose backlog is full, so that a client would have to wait."""
    with contextlib.closing(UnixSocket(str(path))) as server, contextlib.ExitStack() as clients:
        server.listener.listen(0)
        for _ in range(2):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(OSError, match="Address already in use"):
            UnixSocket(str(path))


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket_stays(path, what, tmp_path):
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="Address already in use"):
        SmtpSource(f"unix:{path}")
    assert os.path.lexists(path) and not path.is_socket()


def test_what_another_process_has_by_now_stays(path):
    first = UnixSocket(str(path))
    path.unlink()
    with contextlib.closing(UnixSocket(str(path))):
        first.close()
        assert connects(path)
    assert not path.exists()


def test_what_is_no_socket_any_more_stays(path):
    first = UnixSocket(str(path))
    path.unlink()
    path.write_text("precious")
    first.close()
    assert path.read_text() == "precious"


def test_a_path_that_is_gone_is_no_fault(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    listening = UnixSocket(str(folder / "socket"))
    (folder / "socket").unlink()
    folder.rmdir()
    listening.close()


def test_another_current_directory_changes_nothing(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    listening = UnixSocket(path.name)
    monkeypatch.chdir("/")
    listening.close()
    assert not path.exists()


def test_of_many_that_begin_at_once_one_gets_it(path):
    """Each finds what a killed process left; a second one to remove it would take it from the first."""
    for _ in range(20):
        leave = UnixSocket(str(path))
        leave.listener.close()
        ready = threading.Barrier(4)
        got = []

        def begin(ready=ready, got=got):
            ready.wait(30)
            with contextlib.suppress(OSError):
                got.append(UnixSocket(str(path)))

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(got) == 1 and connects(path)
        got[0].close()


@pytest.mark.parametrize(
    ("place", "why"),
    [("no/such/folder/socket", "No such file or directory"), ("x" * 200, "AF_UNIX path too long")],
)
def test_where_there_can_be_no_socket(place, why, tmp_path):
    with pytest.raises(SourceError, match=why):
        LmtpSource(f"unix:{tmp_path}/{place}")


def test_a_lock_that_somebody_has_for_long(path, monkeypatch):
    """As anybody may in /tmp: the start is refused with a reason, and the end does not wait for him."""
    monkeypatch.setattr(unix_socket, "PATIENCE", 0.02)
    monkeypatch.setattr(unix_socket, "SHORT", 0.02)
    opened = UnixSocket(str(path))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        opened.close()
        assert path.exists()
        with pytest.raises(OSError, match="another process has a lock on"):
            UnixSocket(str(path))
    finally:
        os.close(folder)
    UnixSocket(str(path)).close()  # what was left is replaced
    assert not path.exists()
