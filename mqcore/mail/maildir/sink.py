"""`maildir:PATH` as a sink."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._mail import Mail
from ..base import Store
from ..errors import SinkError, cannot_store, describe
from ..files import sync_folder, write_all
from . import format
from .sync import sync_filesystem, syncs_in_one

FOLDERS = ("tmp", "new", "cur")


class MaildirSink(Store):
    """Mails become files in new/, or in cur/ if the source had flags for them.

    A group is written to tmp/ and brought to the disk, then renamed, and the folders brought to the disk: so a file in
    new/ or cur/ is whole, whenever the power fails. Names are the same in every run (see `format.make_name`). One run
    at a time writes to a Maildir; readers and other deliveries need not care.
    """

    def __init__(self, path: str) -> None:
        self.url = f"maildir:{path}"
        self.path = Path(path)
        self.notes = self.path / "mqcore.reasons.jsonl"
        self._folders: dict[str, int] = {}
        try:
            self._make()
            for name in FOLDERS:
                self._folders[name] = os.open(self.path / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._lock()
            self._clean()
            self._stored = frozenset(self._find_stored())
        except OSError as error:
            self.close()
            raise SinkError(f"cannot write to {self.url}: {describe(error, path)}") from error
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        is_maildir = any((self.path / name).is_dir() for name in FOLDERS)
        if not is_maildir and self.path.exists() and any(self.path.iterdir()):
            raise SinkError(f"{self.url} is no Maildir but a folder of other things; name a new or an empty folder")
        for name in FOLDERS:
            (self.path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._folders["tmp"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkError(f"another mqcore writes to {self.url}; wait until it is done") from None
        except OSError:
            pass  # NFS locks no folders; there two runs at once from one source are the user's to avoid

    def _clean(self) -> None:
        """Remove what a run that was killed left half written."""
        for entry in os.scandir(self._folders["tmp"]):
            if format.parse_id(entry.name):
                os.unlink(entry.name, dir_fd=self._folders["tmp"])

    def _find_stored(self) -> Iterator[bytes]:
        # A run that was killed may have renamed a file and not brought the folder to the disk.
        for name in ("new", "cur"):
            os.fsync(self._folders[name])
            for entry in os.scandir(self._folders[name]):
                if id := format.parse_id(entry.name):
                    yield bytes.fromhex(id)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bytes.fromhex(id) in self._stored

    def store(self, mails: Sequence[Mail]) -> None:
        places = [self._place(mail) for mail in mails]
        try:
            self._write(mails, places)
        except OSError as error:
            # The kernel tells of a failed sync once, so trying again would prove nothing: the whole group is undone.
            for folder, name in places:
                self._remove("tmp", name)
                self._remove(folder, name)
            raise cannot_store(f"cannot write to {self.url}: {describe(error)}", error) from error

    def _place(self, mail: Mail) -> tuple[str, str]:
        name = format.make_name(mail)
        flags = mail.origin.flags
        return ("new", name) if flags is None else ("cur", f"{name}:2,{flags}")

    def _write(self, mails: Sequence[Mail], places: Sequence[tuple[str, str]]) -> None:
        tmp = self._folders["tmp"]
        at_once = syncs_in_one(len(mails))
        for mail, (_, name) in zip(mails, places, strict=True):
            self._write_file(name, mail, sync=not at_once)
        if at_once:
            sync_filesystem(tmp)
        for folder, name in places:
            os.rename(name, name, src_dir_fd=tmp, dst_dir_fd=self._folders[folder])
        for folder in {folder for folder, _ in places}:
            os.fsync(self._folders[folder])

    def _write_file(self, name: str, mail: Mail, *, sync: bool) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._folders["tmp"])
        try:
            write_all(fd, mail.mime)
            if (received := mail.origin.received) is not None:
                os.utime(fd, (received, received))  # mail readers take it for the time of arrival
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _remove(self, folder: str, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folders[folder])

    def close(self) -> None:
        while self._folders:
            os.close(self._folders.popitem()[1])
