"""`mbox:PATH` as a source."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from ..base import Reader
from ..errors import SourceError, describe
from ..origin import Origin
from . import format
from ._usual import find_cr, find_lf, origin_of, parse_from_line, split
from .locks import Locked, measure

BLOCK = 1 << 20
DIVIDER = b"\nFrom "
DIVIDER_CR = re.compile(rb"[\r\n]From ")


class MboxSource(Reader):
    """The mails of an mbox, as far as it reached when it was opened: what is delivered later is for the next run.

    A file is read in blocks, so memory holds one block and one mail, and the file is locked only for a moment, to learn
    its size while no delivery is half done.
    """

    def __init__(self, path: str) -> None:
        self.url = f"mbox:{path}"
        self.path = Path(path)
        self.done = 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"cannot read {self.url}: {describe(error, path)}") from error
        try:
            self.total = self._measure()
            self._start = self._find_start()
        except BaseException:
            self.close()
            raise
        # The whole path, so that two mailboxes with the same mails do not look like one.
        self._identity = os.path.realpath(path).encode(errors="surrogateescape") + b"\0"

    def _measure(self) -> int:
        status = os.fstat(self._fd)
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"cannot read {self.url}: it is a folder; for a Maildir say maildir:{self.path}")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"cannot read {self.url}: it is no regular file; save it as one first")
        try:
            return measure(self._fd, self.path)
        except Locked as error:
            raise SourceError(f"cannot read {self.url}: {error}; try again when that program is done{error.hint}") from error
        except OSError as error:
            raise SourceError(f"cannot read {self.url}: {describe(error)}") from error

    def _find_start(self) -> int:
        """Where the first mail begins: some programs leave empty lines before it."""
        begin = self._read(0, min(64, self.total))
        if fault := format.find_fault(begin):
            raise SourceError(f"{self.url} {fault}")
        return len(begin) - len(begin.lstrip(b"\r\n"))

    def __iter__(self) -> Iterator[Origin]:
        sort_time = 0
        for start, raw in self._pieces():
            end = start + len(raw)
            from_line, mime = split(raw, last=end == self.total)
            sender, received = parse_from_line(from_line)
            digest = blake2b(self._identity, digest_size=16)
            digest.update(b"%d\0" % start)
            digest.update(raw)
            del raw  # it may be big, and the mail is a copy of most of it
            self.done = end
            sort_time = max(sort_time, int(received or 0))
            yield origin_of(mime, digest.hexdigest(), start, sender, received, from_line, sort_time)

    def _pieces(self) -> Iterator[tuple[int, bytes]]:
        """Each mail with its From_ line and what divides it from the next, and where it begins."""
        start = at = self._start
        find = self._choose_divider(start, b"", 0)
        while at < self.total:
            block = self._read(at, min(BLOCK, self.total - at))
            found = find(block, 0)
            while found >= 0:
                end = found + 1
                yield start, block[start - at : end] if start >= at else self._read(start, at + end - start)
                start = at + end
                find = self._choose_divider(start, block, end)
                found = find(block, end)
            if at + len(block) == self.total:
                break
            at += len(block) - len(DIVIDER) + 1  # a divider may lie across two blocks
        if start < self.total:
            yield start, self._read(start, self.total - start)

    def _choose_divider(self, start: int, block: bytes, at: int) -> Callable[[bytes, int], int]:
        """What finds the end of the mail that begins at `start`, and at `at` in the block."""
        head = block[at : at + format.HEAD]
        if len(head) < format.HEAD:
            head = self._read(start, min(format.HEAD, self.total - start))
        return _find_any if find_cr(head) else find_lf

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.pread(self._fd, size, offset)
            except OSError as error:
                raise SourceError(f"cannot read {self.url} at byte {offset}: {describe(error)}") from error
            if not part:
                raise SourceError(
                    f"{self.url} became shorter while it was read, and ends at byte {offset} now; run again"
                )
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        os.close(self._fd)


def _find_any(block: bytes, begin: int) -> int:
    match = DIVIDER_CR.search(block, begin)
    return -1 if match is None else match.start()
