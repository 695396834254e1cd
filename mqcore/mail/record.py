"""What a sink has taken that cannot be asked later: a file beside the mailbox that the mails come from.

It has a line with the id of each mail. Where some recipients of a mail have it and others do not, each of the former has a line
with the id and the recipient.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .errors import SinkError, describe
from .files import append, sync_folder
from .threads import in_thread, to_the_end

_LINE = re.compile(rb"([0-9a-f]{32})(?: ([^\n]+))?\n")


class Record:
    """Of what goes from `source` to `url`. Raises SinkError."""

    def __init__(self, source: Path, url: str) -> None:
        scheme, _, place = url.partition(":")
        place = place.removeprefix("//").replace("%", "%25").replace("/", "%2F")
        name = f"sent.{scheme}.{place}"
        self.path = source / f"mqcore.{name}" if source.is_dir() else Path(f"{source}.{name}")
        self._url = url
        self._group = _Group()
        self._writing: asyncio.Task[None] | None = None
        self._delivered: set[bytes] = set()
        self.partly: dict[str, set[str]] = {}
        """Who has it by an earlier run, of each mail that others do not have, by its id."""
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            self.close()
            raise SinkError(f"cannot write to {self.path}: {describe(error, self.path)}") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkError(f"another mqcore sends these mails to {self._url}; wait until it is done") from None
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.ftruncate(self._fd, whole)  # a run was killed while it wrote
        for match in _LINE.finditer(text):
            id, recipient = match.groups()
            if recipient is None:
                self._delivered.add(bytes.fromhex(id.decode()))
            else:
                self.partly.setdefault(id.decode(), set()).add(recipient.decode(errors="surrogateescape"))
        sync_folder(self.path.parent)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bytes.fromhex(id) in self._delivered

    def recipients_of(self, id: str) -> frozenset[str]:
        """Those that have the mail by an earlier run, which has others that do not."""
        return frozenset(self.partly.get(id, ()))

    async def note(self, ids: Iterable[str], partly: Mapping[str, Iterable[str]]) -> None:
        """Remember that the mails with `ids` are delivered to all their recipients, and the others to these only. Raises
        SinkError."""
        lines = [f"{id}\n" for id in ids]
        lines += [f"{id} {recipient}\n" for id, recipients in partly.items() for recipient in recipients]
        if not lines:
            return
        noted: asyncio.Future[SinkError | None] = asyncio.get_running_loop().create_future()
        self.note_soon(lines, noted.set_result)
        await to_the_end(lambda: asyncio.wait([noted]), noted.done)
        if (error := noted.result()) is not None:
            raise error

    def note_soon(self, lines: Iterable[str], done: Callable[[SinkError | None], object]) -> None:
        """`done` is called when these are on the disk, or with the reason why they are not."""
        self._group.lines += lines
        self._group.waiting.append(done)
        if self._writing is None:
            self._begin_writing()

    def _begin_writing(self) -> None:
        self._writing = asyncio.get_running_loop().create_task(self._write_groups())
        self._writing.add_done_callback(self._end_writing)

    def _end_writing(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if self._group.lines:  # it was cancelled before it began
            self._begin_writing()

    async def _write_groups(self) -> None:
        """One after the other, each with what came while the one before was written. Whoever cancels it, as a loop that ends
        does: some wait for it."""
        while self._group.lines:
            group, self._group = self._group, _Group()
            try:
                with contextlib.suppress(asyncio.CancelledError):  # the thread is done with it all the same
                    await in_thread(self._write, group)
            except Exception as reason:  # there is no thread, or no memory
                group.error = SinkError(f"cannot write to {self.path}: {reason}")
            for done in group.waiting:
                done(group.error)

    def _write(self, group: _Group) -> None:
        """In the thread, so that the group knows of its error also if the task that waits for the thread is cancelled."""
        try:
            append(self._fd, "".join(group.lines).encode(errors="surrogateescape"))
            os.fsync(self._fd)
        except OSError as error:
            group.error = SinkError(f"cannot write to {self.path}: {describe(error, self.path)}")

    async def written(self) -> None:
        """Wait until nothing is being written: only then it can be closed."""
        while self._writing is not None:
            await asyncio.wait([self._writing])

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Group:
    """What is written at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.waiting: list[Callable[[SinkError | None], object]] = []
        self.error: SinkError | None = None
