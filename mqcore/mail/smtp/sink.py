"""Servers as a sink: `smtp://HOST:PORT`, `smtps://HOST:PORT`, `lmtp://HOST:PORT`, and Unix sockets, as in `lmtp:unix:PATH`."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import ssl
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .._mail import Mail
from ..base import Option, Sink, Source
from ..errors import SinkError, describe
from ..files import append, sync_folder
from ..threads import in_thread
from ..verdicts import Verdict
from .credentials import CREDENTIALS, Credentials, check_credentials, find_credentials
from .hostname import check_hostname, choose_hostname
from .source import HOSTNAME, LENIENT, split_host
from .upstream import Upstream

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .sender import Sender

log = logging.getLogger(__name__)

TLS_OUT = ("may", "none", "require", "verify")

_LINE = re.compile(rb"([0-9a-f]{32})(?: ([^\n]+))?\n")


class SmtpSink(Sink):
    """The next server, to which a `Sender` delivers.

    For a source that a second run reads again, `record` is a file with the id of each mail that is delivered, a line
    each. Where some recipients of a mail have it and others do not, each of the former has a line with the id and the
    recipient. For a source that is a server there is nothing to remember, as clients know what they have sent.
    """

    commits_in_parts = True
    needs_recipients = True
    options: ClassVar[Sequence[Option]] = (
        Option(
            "tls-out",
            "STARTTLS of the next server: where it is offered and works (may, the default), never (none), always (require), "
            "always and with a trusted certificate (verify)",
            choices=TLS_OUT,
        ),
        HOSTNAME,
        LENIENT,
        *CREDENTIALS,
    )
    implicit_tls = False
    lmtp = False
    scheme = "smtp"
    _sender: Sender

    @classmethod
    def check(cls, path: str, given: Mapping[str, Any]) -> None:
        if "tls_out" in given and path.startswith("unix:"):
            raise ValueError(f"--tls-out is for --to {cls.scheme}://HOST:PORT; a socket on this machine needs no TLS")
        if "hostname" in given:
            check_hostname(given["hostname"])
        check_credentials(path, given, cls.scheme)

    @classmethod
    def open(cls, path: str, source: Source, **options: Any) -> Self:
        return cls(path, source=source.path, **options)

    def __init__(
        self,
        path: str,
        *,
        source: Path | None = None,
        tls_out: str | None = None,
        hostname: str | None = None,
        lenient: bool = False,
        credentials: str | None = None,
        credentials_env: bool = False,
    ) -> None:
        """`path` is `//HOST:PORT` or `unix:PATH`; `source` is where the mailbox lies that mails come from.

        With `tls_out`, STARTTLS is used `may`be (where it is offered and works), is a must (`require`), also with a
        certificate that the system trusts (`verify`), or is not used (`none`). With `credentials`, a file, or those of the
        environment, it is `verify` unless it is `require`; without them `may`. `lenient`: what no RFC allows is sent as it is;
        a source that is lenient makes its sink so.
        """
        self.lenient = lenient
        name = choose_hostname(hostname)
        self.url = f"{self.scheme}:{path}"
        self._path = path
        self.record = None if source is None else self._beside(source)
        self._group = _Group()
        self._writing = asyncio.Lock()
        self._delivered: set[bytes] = set()
        self._partly: dict[str, set[str]] = {}
        self._fd = -1
        login = find_credentials(credentials, env=credentials_env)
        self.upstream = self._find_upstream(tls_out or ("may" if login is None else "verify"), name, login)
        if self.record is not None:
            try:
                self._open(self.record)
            except OSError as error:
                self.close()
                raise SinkError(f"cannot write to {self.record}: {describe(error, self.record)}") from error
            except BaseException:
                self.close()
                raise

    def _find_upstream(self, tls_out: str, name: str, login: Credentials | None) -> Upstream:
        if self._path.startswith("unix:"):
            return Upstream(self.url, self._path.removeprefix("unix:"), name, self.lmtp, tls_out="none")
        host, port = split_host(self._path)
        if not host:
            raise SinkError(f"{self.url} does not say to which host mails are to be sent")
        verified = self.implicit_tls or tls_out == "verify"
        tls = ssl.create_default_context() if verified else _unverified()
        return Upstream(self.url, (host, port), name, self.lmtp, self.implicit_tls, tls_out, tls, login)

    def _beside(self, source: Path) -> Path:
        path = self._path.removeprefix("//").replace("%", "%25").replace("/", "%2F")
        name = f"sent.{self.scheme}.{path}"
        return source / f"mqcore.{name}" if source.is_dir() else Path(f"{source}.{name}")

    def _open(self, record: Path) -> None:
        self._fd = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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

    @property
    def takes_dsn(self) -> bool:  # type: ignore[override]
        """As far as the next server said so on the connection that was made last."""
        return "DSN" in self._sender.pool.health.extensions

    def figures(self) -> dict[str, Any]:
        return {"smtp_out": {"connections": self._sender.pool.open, "replies": dict(self._sender.replies)}}

    def begin(self, gateway: Gateway) -> None:
        from .sender import Sender  # takes its time, as it takes the client with it

        if not gateway.source.traces:
            log.warning("mails go to %s without a Received line: no server can find out that they go round in a loop", self.url)
        self.lenient = self.lenient or gateway.source.lenient
        self._sender = Sender(gateway, self)

    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        return await self._sender.send(mails)

    def cancel(self, mails: Sequence[Mail]) -> None:
        self._sender.cancel(mails)

    def settled(self, mails: Sequence[Mail]) -> Coroutine[Any, Any, None] | None:
        return self._sender.settled(mails)

    async def end(self) -> None:
        await self._sender.close()

    async def note(self, mails: Iterable[Mail], partly: Mapping[Mail, Iterable[str]]) -> None:
        """Remember that `mails` are delivered to all their recipients, and the others to these only. Raises SinkError."""
        lines = [f"{mail.origin.id}\n" for mail in mails]
        lines += [f"{mail.origin.id} {recipient}\n" for mail, recipients in partly.items() for recipient in recipients]
        if self.record is None or not lines:
            return
        group = self._group
        group.lines += lines
        async with self._writing:
            if group is self._group:  # with what came while the one before was written
                self._group = _Group()
                await in_thread(self._write, group)
        if group.error is not None:
            raise group.error

    def _write(self, group: _Group) -> None:
        """In the thread, so that the group knows of its error also if the task that waits for the thread is cancelled."""
        try:
            append(self._fd, "".join(group.lines).encode())
            os.fsync(self._fd)
        except OSError as error:
            group.error = SinkError(f"cannot write to {self.record}: {describe(error, self.record)}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _unverified() -> ssl.SSLContext:
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
    options = (HOSTNAME, LENIENT, *CREDENTIALS)


class LmtpSink(SmtpSink):
    """A server that replies to each recipient when it has the mail, as those do that deliver to mailboxes (RFC 2033)."""

    lmtp = True
    scheme = "lmtp"
    options = tuple(option for option in SmtpSink.options if option not in CREDENTIALS)
