"""`maildir:PATH` as a source."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from ..base import Reader
from ..errors import SourceError, describe
from ..message import Origin
from . import format

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
        # One of the folders may be missing: some programs make them when they need them.
        folders = [name for name in ("new", "cur") if (self.path / name).is_dir()]
        if not folders:
            what = "there is no such folder" if not self.path.exists() else "it has neither new/ nor cur/"
            raise SourceError(f"{self.url} is no Maildir: {what}")
        names = (f"{folder}/{name}" for folder in folders for name in self._list(folder))
        self._names = sorted(names, key=format.sort_key)
        self.total = len(self._names)

    def _list(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                        yield entry.name
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
            with (self.path / name).open("rb") as file:
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

    def _find_moved(self, unique: str) -> list[str]:
        """Where mails of that name are now; nowhere if the owner removed them."""
        if not self.path.exists():
            raise SourceError(f"{self.url} is gone")
        files = [f"{folder}/{name}" for folder in ("cur", "new") for name in self._list(folder)]
        return [file for file in files if _unique(file) == unique]

    def close(self) -> None:
        """Nothing is open between two mails."""


def _unique(file: str) -> str:
    """The part of folder/name that stays when a mail reader moves or flags the mail."""
    return format.split_file(file)[1]
