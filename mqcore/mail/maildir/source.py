"""`maildir:PATH` as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from ..base import Reader
from ..errors import SourceError, describe
from ..message import Origin
from . import format


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
        # One of the folders may be missing: some programs make them when they need them.
        folders = [name for name in ("new", "cur") if (self.path / name).is_dir()]
        if not folders:
            what = "there is no such folder" if not self.path.exists() else "it has neither new/ nor cur/"
            raise SourceError(f"{self.url} is no Maildir: {what}")
        names = (f"{folder}/{name}" for folder in folders for name in self._list(folder))
        self._names = sorted(names, key=_unique)
        self.total = len(self._names)

    def _list(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self.path / folder) as entries:
                yield from (entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except OSError as error:
            raise SourceError(f"cannot read {self.url}: {describe(error)}") from error

    def __iter__(self) -> Iterator[Origin]:
        previous = None
        for number, name in enumerate(self._names):
            unique = _unique(name)
            # new/ was listed before cur/, so a mail that was moved between the two was seen twice.
            if unique != previous and (origin := self._read(name, unique, number)):
                yield origin
            previous = unique
            self.done = number + 1

    def _read(self, name: str, unique: str, number: int) -> Origin | None:
        try:
            try:
                file = (self.path / name).open("rb")
            except FileNotFoundError:
                moved = self._find_moved(unique)
                if moved is None:
                    return None
                name = moved
                file = (self.path / name).open("rb")
            with file:
                received = os.fstat(file.fileno()).st_mtime
                mime = file.read()
        except OSError as error:
            raise SourceError(
                f"cannot read {self.url}: {name}: {describe(error, self.path / name)}; "
                "make it readable or move it away, and run again"
            ) from error
        digest = blake2b(self._identity, digest_size=16)
        digest.update(os.fsencode(unique) + b"\0")
        digest.update(mime)
        flags = format.split_flags(name)[1] if name.startswith("cur/") else None
        return Origin(mime, digest.hexdigest(), number, format.parse_envelope(unique), received, flags=flags)

    def _find_moved(self, unique: str) -> str | None:
        """Where a mail is that is not under the name it was listed by; None if its owner removed it."""
        if not self.path.exists():
            raise SourceError(f"{self.url} is gone")
        for folder in ("cur", "new"):
            for name in self._list(folder):
                if _unique(f"{folder}/{name}") == unique:
                    return f"{folder}/{name}"
        return None

    def close(self) -> None:
        """Nothing is open between two mails."""


def _unique(name: str) -> str:
    """The part of folder/name that stays when a mail reader moves or flags the mail."""
    return format.split_flags(name.partition("/")[2])[0]
