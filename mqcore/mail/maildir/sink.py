"""`maildir:PATH` as a sink."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._mail import Mail
from ..base import Store
from ..delivered import as_delivered
from ..errors import SinkError, describe, not_stored
from . import format
from ._files import publish_files, sync_filesystem, syncs_in_one, write_files
from .folders import open_folder
from .index import Index
from .lock import FOLDERS, INDEX, clean, make, take_lock

PORTION = 1 << 20
"""Octets that are written at a time, or some more: mails of a group share their bytes, but what is added on top of each."""


class MaildirSink(Store):
    """Mails become files in new/ or cur/: where they were, if they are from a Maildir, and otherwise in new/.

    A group is written to tmp/ and brought to the disk, then each file gets its name, and the folders are brought to the
    disk: so a file in new/ or cur/ is whole, whenever the power fails. Names are the same in every run (see
    `format.make_name`), and never taken from another file: if there is one, the mail is there. An index tells which
    mails were there that readers have removed (see `Index`). One run at a time writes to a Maildir; readers and other
    deliveries need not care. The processes of one run share it: their supervisor has the lock, a `MaildirLock`, and cleans.
    """

    shares = True

    def __init__(self, path: str, *, writer: str | None = None) -> None:
        """`writer`: names this process, one of several of a run that has the lock already; None: it takes the lock."""
        self.url = f"maildir:{path}"
        self.path = Path(path)
        self.notes = self.path / "mqcore.reasons.jsonl"
        # No other writer, dead or alive, has it, and nobody can guess the name of a file that is about to be made.
        self._generation = (os.urandom(8).hex() if writer is None else writer).encode()
        self._counter = itertools.count()
        self._to_note: deque[str] = deque()
        self._folders: dict[str, int] = {}
        self._opened = contextlib.ExitStack()
        try:
            make(self.path, self.url)
            for name in FOLDERS:
                self._folders[name] = self._open(name)
            if writer is None and take_lock(self._folders["tmp"], self.url):
                clean(self._folders["tmp"])
            self._index = Index(self.path / INDEX, shared=writer is not None)
            self._opened.callback(self._close_index)
            self._found = frozenset(id for id in self._find_stored() if id not in self._index.ids)
        except OSError as error:
            self.close()
            raise SinkError(f"cannot write to {self.url}: {describe(error, path)}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, folder: str) -> int:
        fd = open_folder(self.path, folder)
        self._opened.callback(os.close, fd)
        return fd

    def _find_stored(self) -> Iterator[bytes]:
        # A run that was killed may have renamed a file and not brought the folder to the disk.
        for name in ("new", "cur"):
            os.fsync(self._folders[name])
            for entry in os.scandir(self._folders[name]):
                if id := format.parse_id(entry.name):
                    yield bytes.fromhex(id)

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, str):
            return False
        if bytes.fromhex(id) in self._index:
            return True
        if bytes.fromhex(id) in self._found:
            self._to_note.append(id)  # it came again, and may once more when a reader has removed it
            return True
        return False

    def store(self, mails: Sequence[Mail]) -> None:
        files = [self._new_name(mail) for mail in mails]
        published: dict[str, list[bytes]] = {}
        try:
            self._write(files, mails)
            for folder, (some, names) in _places(files, mails).items():
                published[folder] = []
                publish_files(self._folders["tmp"], self._folders[folder], some, names, published[folder])
            self._note(mail.origin.id for mail in mails if mail.origin.comes_again)
        except BaseException as error:
            # The kernel tells of a failed sync once, so trying again would prove nothing: the whole group is undone.
            for folder, names in [*published.items(), ("tmp", files)]:
                for name in names:
                    self._remove(folder, name)
            if isinstance(error, (OSError, MemoryError)):
                raise not_stored(self.url, error) from error
            raise

    def _new_name(self, mail: Mail) -> bytes:
        return b"Q%b.mqcore.%b.%d" % (mail.origin.id.encode(), self._generation, next(self._counter))

    def _write(self, files: Sequence[bytes], mails: Sequence[Mail]) -> None:
        """To tmp/ and to the disk."""
        tmp, at_once = self._folders["tmp"], syncs_in_one(len(mails))
        for names, contents, times in _portions(files, mails):
            write_files(tmp, names, contents, times, sync=not at_once)
        if at_once:
            sync_filesystem(tmp)

    def _note(self, ids: Iterator[str]) -> None:
        """Into the index, with those that `__contains__`, which another thread calls, found to be missing there."""
        self._index.add(itertools.chain((self._to_note.popleft() for _ in range(len(self._to_note))), ids))

    def _remove(self, folder: str, name: bytes) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folders[folder])

    def _close_index(self) -> None:
        with contextlib.suppress(OSError):  # they are found again, if they are still there
            self._note(iter(()))
        self._index.close()

    def close(self) -> None:
        self._opened.close()


def _portions(files: Sequence[bytes], mails: Sequence[Mail]) -> Iterator[tuple[list[bytes], list[bytes], list[float | None]]]:
    """Names, contents and times of arrival."""
    names: list[bytes] = []
    contents: list[bytes] = []
    times: list[float | None] = []
    size = 0
    for name, mail in zip(files, mails, strict=True):
        content = as_delivered(mail)
        names.append(name)
        contents.append(content)
        times.append(mail.origin.received)
        size += len(content)
        if size >= PORTION:
            yield names, contents, times
            names, contents, times, size = [], [], [], 0
    if names:
        yield names, contents, times


def _places(files: Sequence[bytes], mails: Sequence[Mail]) -> dict[str, tuple[list[bytes], list[bytes]]]:
    """For each folder, which of the files go there, and under which names."""
    places: dict[str, tuple[list[bytes], list[bytes]]] = {}
    for file, mail in zip(files, mails, strict=True):
        folder, name = format.make_file(mail)
        some, names = places.setdefault(folder, ([], []))
        some.append(file)
        names.append(os.fsencode(name))
    return places
