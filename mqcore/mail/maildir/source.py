"""`maildir:PATH` as a source."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from ..base import Reader
from ..errors import SourceError, describe
from ..origin import Origin
from . import format
from .folders import open_folder

TRIES = 100
"""How often to look for a mail that a mail reader moves just then."""


class MaildirSource(Reader):
    """The mails in new/ and cur/, as they were when it was opened, in the order of their names.

    The names, some 100 bytes each, are the only thing that it keeps in memory. Mail readers may move and flag mails
    meanwhile. One that is gone when its turn comes was removed by its owner, and is left out.
    """

    def __init__(self, path: str) -> None:
        self.url = f"maildir:{path}"
        self.path = Path(path)
        self.done = 0
        self._identity = os.path.realpath(path).encode(errors="surrogateescape") + b"\0"
        self._folders: dict[str, int] = {}
        try:
            names = [f"{folder}/{name}" for folder in ("new", "cur") for name in self._list(folder)]
            if not self._folders:
                what = "there is no such folder" if not self.path.exists() else "it has neither new/ nor cur/"
                raise SourceError(f"{self.url} is no Maildir: {what}")
        except BaseException:
            self.close()
            raise
        self._names = sorted(names, key=format.sort_key)
        self.total = len(self._names)

    def _list(self, folder: str) -> Iterator[str]:
        """None if there is no such folder: some programs make it when they need it."""
        try:
            if folder not in self._folders:
                self._folders[folder] = open_folder(self.path, folder)
            with os.scandir(self._folders[folder]) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                        yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise SourceError(f"cannot read {self.url}: {describe(error)}") from error

    def __iter__(self) -> Iterator[Origin]:
        sort_time = 0
        for unique, names in itertools.groupby(self._names, _unique):
            # new/ was listed before cur/, so a mail that was moved between the two was seen twice; but two mails that
            # differ may have one name, too.
            ids = set()
            for name in names:
                for origin in self._read_wherever_it_is(name, unique):
                    if origin.id not in ids:
                        ids.add(origin.id)
                        sort_time = max(sort_time, int(origin.received or 0))
                        yield origin._replace(sort_time=sort_time)
                self.done += 1

    def _read_wherever_it_is(self, name: str, unique: str) -> list[Origin]:
        names = [name]
        for _ in range(TRIES):
            try:
                return [self._read(name, unique) for name in names]
            except FileNotFoundError:
                names = self._find_moved(unique)
        raise SourceError(f"cannot read {self.url}: {name}: it is moved all the time; run again when that is over")

    def _read(self, name: str, unique: str) -> Origin:
        try:
            with open(self._open(name), "rb") as file:
                received = os.fstat(file.fileno()).st_mtime
                mime = file.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SourceError(
                f"cannot read {self.url}: {name}: {describe(error, self.path / name)}; "
                "make it readable or move it away, and run again"
            ) from error
        digest = blake2b(self._identity, digest_size=16)
        digest.update(os.fsencode(unique) + b"\0")
        digest.update(mime)
        sender = format.parse_envelope(unique)
        return Origin(
            mime, digest.hexdigest(), self.done, sender, received, flags=format.find_flags(name), file=name
        )

    def _open(self, name: str) -> int:
        """Raises FileNotFoundError also for what has become something else than a file since it was listed."""
        folder, _, file = name.partition("/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(file, flags, dir_fd=self._folders[folder])
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileNotFoundError from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError
        return fd

    def _find_moved(self, unique: str) -> list[str]:
        """Where mails of that name are now; nowhere if the owner removed them."""
        if not self.path.exists():
            raise SourceError(f"{self.url} is gone")
        files = [f"{folder}/{name}" for folder in ("cur", "new") for name in self._list(folder)]
        return [file for file in files if _unique(file) == unique]

    def close(self) -> None:
        while self._folders:
            os.close(self._folders.popitem()[1])


def _unique(file: str) -> str:
    """The part of folder/name that stays when a mail reader moves or flags the mail."""
    return format.split_file(file)[1]
