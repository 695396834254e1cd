"""Locks on an mbox, of the two kinds that delivery agents and mail readers keep to: fcntl's, and a file PATH.lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

BUSY = (errno.EACCES, errno.EAGAIN)
PATIENCE = 5.0


class Locked(Exception):
    """Another program has the mbox; the message says which lock it is."""


def lock_shared(fd: int) -> None:
    """Wait, but not for ever, until nobody writes to the mbox. Closing the file ends the lock."""
    give_up = time.monotonic() + PATIENCE
    while not _lock(fd, fcntl.LOCK_SH):
        if time.monotonic() > give_up:
            raise Locked("another program has it locked")
        time.sleep(0.05)


def unlock(fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_UN)


class MailboxLock:
    """Both locks on the mbox, until `release`."""

    def __init__(self, fd: int, mbox: Path) -> None:
        if not _lock(fd, fcntl.LOCK_EX):
            raise Locked("another program has it locked")
        self._file: Path | None = Path(f"{mbox}.lock")
        try:
            self._make_file(self._file)
        except FileExistsError:
            if not _is_stale(self._file):
                raise Locked(f"another program has it locked: {self._file} exists") from None
            self._file.unlink(missing_ok=True)
            self._make_file(self._file)
        except PermissionError:
            self._file = None  # as in /var/mail, where a user may make no file; programs go by fcntl's lock there

    @staticmethod
    def _make_file(path: Path) -> None:
        with path.open("x") as file:
            file.write(f"{os.getpid()}\n")

    def release(self) -> None:
        """Give up PATH.lock; the other lock ends with the file's descriptor."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                self._file.unlink()


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        raise
    return True


def _is_stale(path: Path) -> bool:
    """Whether the process that made the lock file, and wrote its number there as is the custom, is gone."""
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        pass
    return False
