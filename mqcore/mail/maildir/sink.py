"""`maildir:PATH` as a sink."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._jobs import Job
from .._mail import Mail
from ..base import Store
from ..delivered import as_delivered
from ..errors import SinkError, describe, not_stored
from . import format
from ._files import Group, syncs_in_one
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
        group = self._new_group(mails)
        try:
            for mail in mails:
                self._add(group, mail)
                if group.unwritten >= PORTION:
                    group.write()
            group.write()
            group.publish()
            self._note(mail.origin.id for mail in mails if mail.origin.comes_again)
        except BaseException as error:
            # The kernel tells of a failed sync once, so trying again would prove nothing: the whole group is undone.
            group.undo()
            if isinstance(error, (OSError, MemoryError)):
                raise not_stored(self.url, error) from error
            raise

    def begin(self, mails: Sequence[Mail]) -> Job | None:
        """Those that are noted in the index are stored by `store`, as are those that would take much memory at once."""
        if self._to_note or any(mail.origin.comes_again for mail in mails) or sum(mail.size for mail in mails) >= PORTION:
            return None
        try:
            group = self._new_group(mails)
            for mail in mails:
                self._add(group, mail)
        except MemoryError as error:
            raise not_stored(self.url, error) from error
        return group

    def end(self, job: Job) -> None:
        assert isinstance(job, Group)
        try:
            job.check()
        except OSError as error:
            raise not_stored(self.url, error) from error

    def _new_group(self, mails: Sequence[Mail]) -> Group:
        return Group(self._folders["tmp"], in_one=syncs_in_one(len(mails)))

    def _add(self, group: Group, mail: Mail) -> None:
        file = b"Q%b.mqcore.%b.%d" % (mail.origin.id.encode(), self._generation, next(self._counter))
        folder, name = format.make_file(mail)
        group.add(file, self._folders[folder], os.fsencode(name), as_delivered(mail), mail.origin.received)

    def _note(self, ids: Iterator[str]) -> None:
        """Into the index, with those that `__contains__`, which another thread calls, found to be missing there."""
        self._index.add(itertools.chain((self._to_note.popleft() for _ in range(len(self._to_note))), ids))

    def _close_index(self) -> None:
        with contextlib.suppress(OSError):  # they are found again, if they are still there
            self._note(iter(()))
        self._index.close()

    def close(self) -> None:
        self._opened.close()
