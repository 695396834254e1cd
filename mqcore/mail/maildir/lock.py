"""Making a Maildir, and having it alone: a run, of one process or several, at a time writes to it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import SinkError, describe
from ..files import sync_folder
from . import format
from .folders import open_folder

FOLDERS = ("tmp", "new", "cur")
INDEX = "mqcore.stored"


class MaildirLock:
    """That of a supervisor, for its workers, from here to `close`. Raises SinkError where another run has it."""

    def __init__(self, path: str) -> None:
        url = f"maildir:{path}"
        try:
            make(Path(path), url)
            self._tmp = open_folder(Path(path), "tmp")
        except OSError as error:
            raise SinkError(f"cannot write to {url}: {describe(error, path)}") from error
        try:
            if take_lock(self._tmp, url):
                clean(self._tmp)
        except BaseException:
            self.close()
            raise

    def clean(self, writer: str) -> None:
        """Remove what one of the processes, which is dead, left half written."""
        clean(self._tmp, writer)

    def close(self) -> None:
        os.close(self._tmp)


def make(path: Path, url: str) -> None:
    """The folders that are missing. Raises SinkError where something else is."""
    there = [name for name in FOLDERS if (folder := path / name).is_symlink() or folder.is_dir()]
    if not there and path.exists() and not all(map(is_ours, os.listdir(path))):
        raise SinkError(f"{url} is no Maildir but a folder of other things; name a new or an empty folder")
    if path.exists() and "new" not in there and "cur" not in there:
        # What the index tells of was thrown away with its folders. First, so that it cannot outlive that.
        (path / INDEX).unlink(missing_ok=True)
        sync_folder(path)
    for name in FOLDERS:
        if name not in there:
            (path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(path)
    sync_folder(path.parent)


def take_lock(tmp: int, url: str) -> bool:
    """By the folder tmp/; False where it cannot be locked."""
    try:
        fcntl.flock(tmp, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SinkError(f"another mqcore writes to {url}; wait until it is done") from None
    except OSError:
        return False  # NFS locks no folders; there two runs at once from one source are the user's to avoid
    return True


def clean(tmp: int, writer: str | None = None) -> None:
    """Remove what was left half written in the folder tmp/, by one writer or anybody of ours: with the lock, all files of ours
    are of dead ones."""
    for entry in os.scandir(tmp):
        id = format.parse_id(entry.name)
        is_its = writer is None or entry.name.startswith(f"Q{id}.mqcore.{writer}.")
        if id and is_its and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=tmp)


def is_ours(name: str) -> bool:
    """Whether a file is one that stays when somebody removes the folders of a Maildir of ours."""
    return name.startswith("mqcore.")
