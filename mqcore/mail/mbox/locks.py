"""Locks on an mbox, of the kinds that delivery agents and mail readers keep to: fcntl's, flock's, and a file PATH.lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import time
from pathlib import Path

BUSY = (errno.EACCES, errno.EAGAIN)
MISSING = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
PATIENCE = 60.0
STALE_AFTER = 600.0
"""Seconds until a PATH.lock counts as left behind whose process cannot be looked for: no delivery takes so long."""
OWNER = re.compile(rb"0*([1-9]\d{0,18})(?::([^\s:]{1,255}))?\s*")

log = logging.getLogger(__name__)


class Locked(Exception):
    """Another program has the mbox; the message says which lock it is."""

    hint = ""
    """What else can be done than to wait for that program."""


class LockFile:
    """PATH.lock, as it was found."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError if nobody has the mbox."""
        self.path = path
        self.status = os.lstat(path)
        self.pid, self.host = self._read_owner()

    def _read_owner(self) -> tuple[int | None, str | None]:
        """The process that made it, and its host. Dovecot writes PID:HOST, as we do, and others the PID alone; procmail writes
        0, and many write nothing. What is no regular file names nobody."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None, None
        try:
            text = os.read(fd, 512) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        except OSError:
            text = b""
        finally:
            os.close(fd)
        if (match := OWNER.fullmatch(text)) is None:
            return None, None
        pid, host = match.groups()
        return int(pid), None if host is None else os.fsdecode(host)

    @property
    def age(self) -> float:
        return time.time() - self.status.st_mtime

    @property
    def is_ours(self) -> bool:
        """Whether this process made it."""
        return self.pid == os.getpid() and self.host in (None, socket.gethostname())

    @property
    def unknown(self) -> str | None:
        """Why nobody here can tell whether its process lives, if that is so: then only its age counts."""
        if self.pid is None:
            return "it names no process"
        if self.host is None and not _is_running(self.pid):  # not here; but over NFS, or from a container, we see others'
            return f"it names the process {self.pid}, and not on which host"
        if self.host not in (None, socket.gethostname()):
            return f"it names a process of the host {self.host!a}"
        return None

    def is_stale(self) -> bool:
        """Whether the process that made it is gone, or, if nobody can know, whether it is old."""
        if self.unknown is not None:
            return self.age > STALE_AFTER
        assert self.pid is not None
        return not _is_running(self.pid)

    def locked(self) -> Locked:
        error = Locked(f"another program has it locked: {self.path} exists")
        if self.unknown is not None:
            error.hint = f", or remove {self.path}: {self.unknown}, and counts no more when it is ten minutes old"
        return error

    def take_over(self) -> None:
        if self.unknown is not None:
            log.warning(
                "%s is taken over: %s, and is %d minutes old; its program was killed, or never let go",
                self.path, self.unknown, self.age / 60,
            )
        with contextlib.suppress(FileNotFoundError):
            now = os.lstat(self.path)
            if os.path.samestat(now, self.status) and now.st_mtime_ns == self.status.st_mtime_ns:
                self.path.unlink()


def measure(fd: int, mbox: Path) -> int:
    """The size of the mbox when no delivery to it is under way. Waits for that, but not for ever."""
    give_up = time.monotonic() + PATIENCE
    while True:
        size = os.fstat(fd).st_size
        busy = _find_lock(fd, mbox)
        # A delivery that began and ended while we looked has made it longer.
        if busy is None and os.fstat(fd).st_size == size:
            return size
        if time.monotonic() > give_up:
            raise busy or Locked("another program writes to it all the time")
        time.sleep(0.05)


def _find_lock(fd: int, mbox: Path) -> Locked | None:
    if not _lock(fd, fcntl.LOCK_SH):
        return Locked("another program has it locked")
    fcntl.lockf(fd, fcntl.LOCK_UN)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno in BUSY:
            return Locked("another program has it locked")
        if error.errno not in MISSING:
            raise
    try:
        file = LockFile(Path(f"{mbox}.lock"))
    except OSError:  # in a folder that we may not search there is none for us
        return None
    return None if file.is_stale() or file.is_ours else file.locked()


class MailboxLock:
    """fcntl's lock and PATH.lock, until `release`."""

    def __init__(self, fd: int, mbox: Path) -> None:
        self._fd = fd
        self._path = Path(f"{mbox}.lock")
        self._made: int | None = None  # open, so that no other file can have its inode
        if not _lock(fd, fcntl.LOCK_EX):
            raise Locked("another program has it locked")
        with contextlib.suppress(FileNotFoundError):
            file = LockFile(self._path)
            if not file.is_stale():
                raise file.locked()
            file.take_over()
        self._may_make = True
        try:
            self._make()
        except PermissionError:
            self._may_make = False  # as in /var/mail, where programs go by fcntl's lock

    def _make(self) -> None:
        try:
            self._made = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise LockFile(self._path).locked() from None
        try:
            os.write(self._made, b"%d:%b\n" % (os.getpid(), os.fsencode(socket.gethostname())))
        except OSError:
            self.release()
            raise

    def renew(self) -> None:
        """Make sure of both: fcntl's ends when any part of this process closes the file, and others remove a PATH.lock of some
        age. Raises Locked if another program has one of them now.
        """
        if not _lock(self._fd, fcntl.LOCK_EX):
            raise Locked("another program has it locked")
        if self._made is not None:
            try:
                if not self._is_ours(self._made):
                    raise LockFile(self._path).locked()
                os.utime(self._made)
            except FileNotFoundError:
                self.release()
        if self._made is None and self._may_make:
            self._make()

    def _is_ours(self, made: int) -> bool:
        return os.path.samestat(os.lstat(self._path), os.fstat(made))

    def release(self) -> None:
        """Give up PATH.lock; the other lock ends with the file's descriptor."""
        if self._made is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._is_ours(self._made):
                self._path.unlink()
        os.close(self._made)
        self._made = None


def _is_running(pid: int) -> bool:
    """Here, that is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        raise
    return True
