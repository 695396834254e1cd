"""`smtp://HOST:PORT` and `smtps://HOST:PORT` as a sink."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .._mail import Mail
from ..base import Sink, Source
from ..errors import SinkError, describe
from ..files import sync_folder, write_all
from ..verdicts import Verdict
from .source import split_host

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .client import NextServer
    from .sender import Sender

_LINE = re.compile(rb"([0-9a-f]{32})(?: ([^\n]+))?\n")


class SmtpSink(Sink):
    """The next server, to which a `Sender` delivers.

    For a source that a second run reads again, `record` is a file with the id of each mail that is delivered, a line
    each. Where some recipients of a mail have it and others do not, each of the former has a line with the id and the
    recipient. For a source that is a server there is nothing to remember, as clients know what they have sent.
    """

    commits_in_parts = True
    needs_recipients = True
    implicit_tls = False
    scheme = "smtp"
    _sender: Sender

    @classmethod
    def open(cls, path: str, source: Source, **options: Any) -> Self:
        return cls(path, source=source.path, **options)

    def __init__(self, path: str, *, source: Path | None = None) -> None:
        """`source` is where the mailbox lies that mails come from."""
        self.url = f"{self.scheme}:{path}"
        self._path = path
        self.record = None if source is None else self._beside(source)
        self._group = _Group()
        self._writing = asyncio.Lock()
        self._delivered: set[bytes] = set()
        self._partly: dict[str, set[str]] = {}
        self._fd = -1
        self.server = self._find_server()
        if self.record is not None:
            try:
                self._open(self.record)
            except OSError as error:
                self.close()
                raise SinkError(f"cannot write to {self.record}: {describe(error, self.record)}") from error
            except BaseException:
                self.close()
                raise

    def _find_server(self) -> NextServer:
        try:
            from .client import NextServer
        except ModuleNotFoundError as error:
            if error.name != "aiosmtplib":
                raise
            raise SinkError(f"{self.url} needs aiosmtplib: pip install 'mqcore[smtp]'") from None
        host, port = split_host(self._path)
        if not host:
            raise SinkError(f"{self.url} does not say to which host mails are to be sent")
        tls = ssl.create_default_context() if self.implicit_tls else _opportunistic()
        return NextServer(self.url, host, port, socket.getfqdn(), tls, self.implicit_tls)

    def _beside(self, source: Path) -> Path:
        name = f"sent.{self.scheme}.{self._path.removeprefix('//')}"
        return source / f"mqcore.{name}" if source.is_dir() else Path(f"{source}.{name}")

    def _open(self, record: Path) -> None:
        self._fd = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkError(f"another mqcore sends these mails to {self.url}; wait until it is done") from None
        text = record.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.ftruncate(self._fd, whole)  # a run was killed while it wrote
        for match in _LINE.finditer(text):
            id, recipient = match.groups()
            if recipient is None:
                self._delivered.add(bytes.fromhex(id.decode()))
            else:
                self._partly.setdefault(id.decode(), set()).add(recipient.decode(errors="surrogateescape"))
        sync_folder(record.parent)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bytes.fromhex(id) in self._delivered

    def recipients_of(self, id: str) -> frozenset[str]:
        """Those that have the mail by an earlier run, which has others that do not."""
        return frozenset(self._partly.get(id, ()))

    def begin(self, gateway: Gateway) -> None:
        from .sender import Sender  # takes its time, as it takes the client with it

        self._sender = Sender(gateway, self)

    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        return await self._sender.send(mails)

    def take_back(self, mails: Sequence[Mail]) -> None:
        self._sender.take_back(mails)

    async def end(self) -> None:
        await self._sender.close()

    async def note(self, mails: Iterable[Mail]) -> None:
        """Remember that these are delivered, to all their recipients. Raises SinkError."""
        if self.record is None:
            return
        group = self._group
        group.lines += [f"{mail.origin.id}\n" for mail in mails]
        async with self._writing:
            if group is self._group:  # with what came while the one before was written
                self._group = _Group()
                try:
                    await asyncio.to_thread(self._append, group.lines)
                except SinkError as error:
                    group.error = error
        if group.error is not None:
            raise group.error

    def store_partly(self, mail: Mail, recipients: Iterable[str]) -> None:
        """Remember that these recipients have the mail. Raises SinkError."""
        self._append(f"{mail.origin.id} {recipient}\n" for recipient in recipients)

    def _append(self, lines: Iterable[str]) -> None:
        if self.record is None:
            return
        try:
            write_all(self._fd, "".join(lines).encode())
            os.fsync(self._fd)
        except OSError as error:
            raise SinkError(f"cannot write to {self.record}: {describe(error, self.record)}") from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _opportunistic() -> ssl.SSLContext:
    """For what was offered in the clear, so that it proves nothing; but who only listens learns nothing (RFC 7435)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    return tls


class _Group:
    """What is written to the record at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.error: SinkError | None = None


class SmtpsSink(SmtpSink):
    """TLS from the first byte, to a server whose certificate is checked."""

    implicit_tls = True
    scheme = "smtps"
