"""`mbox:PATH` as a sink."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .._mail import Mail
from ..base import Store
from ..errors import SinkError, describe, hint, not_stored
from ..files import sync, sync_folder, write_all
from . import format
from .journal import Group, Journal
from .locks import Locked, MailboxLock

IN_MEMORY = 32 << 20
"""Octets that are made once for the journal and the mbox. More are made twice, as they need not fit into the memory."""


class Pieces:
    """What is appended for each mail; made anew each time that one goes through it."""

    def __init__(self, mails: Sequence[Mail], tail: bytes, *, cr: bool) -> None:
        self._mails = mails
        self._tail = tail
        self._cr = cr

    def __iter__(self) -> Iterator[bytes]:
        return format.join(self._mails, self._tail, cr=self._cr)


class MboxSink(Store):
    """Mails are appended to the mbox, which is locked as long as the sink is open.

    Beside it, PATH.mqcore says which mails they were (see `Journal`), so that a second run knows what is there, and how
    to mend what a run that was killed left half written.
    """

    def __init__(self, path: str) -> None:
        self.url = f"mbox:{path}"
        self.path = Path(path)
        self.notes = Path(f"{path}.reasons.jsonl")
        with contextlib.ExitStack() as opened:
            try:
                self._open(opened)
            except Locked as error:
                raise SinkError(
                    f"cannot write to {self.url}: {error}; try again when that program is done{error.hint}"
                ) from error
            except OSError as error:
                raise SinkError(f"cannot write to {self.url}: {describe(error, path)}{hint(error, path)}") from error
            self._opened = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        opened.callback(os.close, self._fd)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise SinkError(f"cannot write to {self.url}: it is no regular file")
        self._lock = MailboxLock(self._fd, self.path)
        opened.callback(self._lock.release)
        if fault := format.find_fault(self._read(0, 64)):
            raise SinkError(f"{self.url} {fault}")
        self._journal = Journal(self.path, self._fd)
        opened.callback(self._journal.close)
        self._journal.recover()
        self._end_in_cr = -1  # where the mbox ended with a mail of ours whose lines end in CR
        sync_folder(self.path.parent)

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bytes.fromhex(id) in self._journal.ids

    def store(self, mails: Sequence[Mail]) -> None:
        try:
            self._lock.renew()
            size = os.lseek(self._fd, 0, os.SEEK_END)
            if not self._is_there():
                # What is written to a file without a name is lost; a server would tell its clients otherwise.
                raise SinkError(f"cannot write to {self.url}: somebody moved or removed it while it was locked; run again")
            pieces: Iterable[bytes] = Pieces(mails, self._read(max(size - 3, 0), 3), cr=size == self._end_in_cr)
            if len(mails) == 1 or sum(mail.size for mail in mails) <= IN_MEMORY:
                pieces = list(pieces)
            group = Group.plan(size, [mail.origin.id for mail in mails], pieces)
            last = self._append(size, group, pieces)
        except Locked as error:
            raise SinkError(f"cannot write to {self.url}: {error}; run again when that program is done{error.hint}") from error
        except (OSError, MemoryError) as error:
            raise not_stored(self.url, error) from error
        if format.find_cr(last.lstrip(b"\r\n")):
            self._end_in_cr = size + sum(group.sizes)

    def _append(self, size: int, group: Group, pieces: Iterable[bytes]) -> bytes:
        """Returns how the last of them begins."""
        head = b""
        try:
            self._journal.append(group)
            for piece in pieces:
                write_all(self._fd, piece)
                head = piece[: format.HEAD]
                del piece  # before the next one is made
            sync(self._fd)
        except BaseException:
            try:
                os.ftruncate(self._fd, size)
                self._journal.undo()
            except OSError as error:  # the next run undoes it
                raise OSError(errno.EIO, error.strerror) from error
            raise
        return head

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._opened.close()
