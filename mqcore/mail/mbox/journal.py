"""What an mbox cannot say of itself: which mails of which source are in it, kept in a file beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from ..errors import SinkError
from ..files import sync, write_all

HEAD = 40


class Group(NamedTuple):
    """One line of the journal: what was about to be appended to the mbox, mail by mail."""

    at: int
    ids: list[str]
    sizes: list[int]
    digests: list[str]
    heads: list[str]
    """How each begins: the sender and the date, so that a torn mail is known for ours."""

    @classmethod
    def plan(cls, at: int, ids: Sequence[str], pieces: Iterable[bytes]) -> Group:
        group = cls(at, list(ids), [], [], [])
        for piece in pieces:
            group.sizes.append(len(piece))
            group.digests.append(_digest(piece))
            group.heads.append(piece[:HEAD].decode("latin-1"))
            del piece  # before the next one is made
        return group

    def offset(self, number: int) -> int:
        """Where in the mbox a mail of the group begins."""
        return self.at + sum(self.sizes[:number])

    def cut(self, count: int) -> Group:
        """The group with its first mails only."""
        return Group(self.at, self.ids[:count], self.sizes[:count], self.digests[:count], self.heads[:count])


class Journal:
    """A line for each group, on the disk before the first byte of the group is in the mbox.

    So whatever ends a run, the next one knows by the last line what the end of the mbox must be. It keeps what is
    whole, cuts off a mail that is half written, and touches nothing that it did not write. If the mbox is no longer the
    one that the journal is about, as after it was rotated or edited, the journal starts anew: then a mail may be in the
    mbox twice, but none is missing.
    """

    def __init__(self, mbox: Path, fd: int) -> None:
        self._mbox = mbox
        self._mbox_fd = fd
        self.path = Path(f"{mbox}.mqcore")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._length = 0
        self.ids: set[bytes] = set()

    def recover(self) -> None:
        """Compare the journal with the mbox, fill `ids`, and cut a half written mail off the mbox."""
        previous, last = self._load()
        if last is None:
            return
        if previous and not self._is_whole(previous, len(previous.ids) - 1):
            self.ids.clear()
            os.ftruncate(self._fd, 0)
            return
        whole = 0
        while whole < len(last.ids) and self._is_whole(last, whole):
            whole += 1
        if whole < len(last.ids):
            if self._is_torn(last, whole):
                os.ftruncate(self._mbox_fd, last.offset(whole))
                os.fsync(self._mbox_fd)
            last = last.cut(whole)
            self.append(last)
        self._note(last)

    def _load(self) -> tuple[Group | None, Group | None]:
        """The last two groups. The ids of all groups but the last, which `recover` compares with the mbox, are in `ids`."""
        previous = last = None
        length = 0
        with open(self._fd, "rb", closefd=False) as file:
            for line in file:
                try:
                    group = Group(**json.loads(line))
                except (TypeError, ValueError):
                    break  # half written, so the mbox has nothing of it
                length += len(line)
                if last and last.at < group.at:
                    self._note(last)
                    previous = last if last.ids else previous
                last = group  # in place of the one before, if it is for the same place
        os.ftruncate(self._fd, length)
        return previous, last

    def _note(self, group: Group) -> None:
        self.ids.update(map(bytes.fromhex, group.ids))

    def _is_whole(self, group: Group, number: int) -> bool:
        return _digest(self._read(group.offset(number), group.sizes[number])) == group.digests[number]

    def _is_torn(self, group: Group, whole: int) -> bool:
        """Whether the mbox ends within a mail of ours. What another program wrote there instead is not ours to cut."""
        at = group.offset(whole)
        tail = self._read(at, sum(group.sizes[whole:]))
        head = group.heads[whole].encode("latin-1")[: len(tail)]
        if not tail or not (tail.startswith(head) or not tail.strip(b"\0")):
            return False
        if b"\nFrom " in tail[1:] or at + len(tail) < os.fstat(self._mbox_fd).st_size:
            raise SinkError(
                f"the last run was killed while it wrote a mail to {self._mbox}, and another program has added to it "
                f"since; cut the half mail that begins at byte {at} out of it, and run again"
            )
        return True

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._mbox_fd, size, offset)

    def append(self, group: Group) -> None:
        """Say what will be in the mbox next."""
        self._length = os.fstat(self._fd).st_size
        write_all(self._fd, json.dumps(group._asdict(), separators=(",", ":")).encode() + b"\n")
        sync(self._fd)

    def undo(self) -> None:
        """Take the last line back."""
        os.ftruncate(self._fd, self._length)

    def close(self) -> None:
        os.close(self._fd)


def _digest(piece: bytes) -> str:
    return blake2b(piece, digest_size=16).hexdigest()
