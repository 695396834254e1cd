"""What a Maildir cannot say of itself: which mails were in it that its readers have removed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..files import append, sync_folder

LINE = re.compile(rb"[0-9a-f]{32}\n")
SIZE = 33


class Index:
    """A file with a line for each mail that is in the Maildir or was: its id.

    A line is written when the mail has its name on the disk, and never before. So the worst that can be wrong with the
    file is that its end is missing, and then a mail that a reader has removed meanwhile may come twice. What is no line
    of ours, and all behind it, is cut off.

    The file is made with its first line. It may be `shared` with other processes, which write to it meanwhile.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self._path = path
        self._shared = shared
        self._length = 0
        """Octets of it that are known."""
        self._fd: int | None = None
        self.ids: set[bytes] = set()
        with contextlib.suppress(FileNotFoundError):
            self._open(0)

    def _make(self) -> int:
        fd = self._open(os.O_CREAT)
        sync_folder(self._path.parent)
        return fd

    def _open(self, flags: int) -> int:
        flags |= os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = fd = os.open(self._path, flags, 0o600)
        self._read(fd)
        if not self._shared:
            os.ftruncate(fd, self._length)
        return fd

    def _read(self, fd: int) -> None:
        """What is new in it."""
        with open(fd, "rb", closefd=False) as file:
            file.seek(self._length)
            while LINE.fullmatch(line := file.read(SIZE)):
                self.ids.add(bytes.fromhex(line[:-1].decode()))
                self._length += SIZE

    def __contains__(self, id: bytes) -> bool:
        """Whether it has this one; what others wrote since it was opened counts."""
        if self._shared and id not in self.ids:
            with contextlib.suppress(FileNotFoundError):
                if self._fd is None:
                    self._open(0)
                elif os.fstat(self._fd).st_size > self._length:
                    self._read(self._fd)
        return id in self.ids

    def add(self, ids: Iterable[str]) -> None:
        """Note these; as a whole, or not at all and OSError."""
        if not (lines := "".join(f"{id}\n" for id in ids).encode()):
            return
        append(self._make() if self._fd is None else self._fd, lines)

    def close(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):  # an end that is missing is foreseen
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
