"""Servers as a sink: `smtp://HOST:PORT`, `smtps://HOST:PORT`, `lmtp://HOST:PORT`, and Unix sockets, as in `lmtp:unix:PATH`."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .._mail import Mail
from ..base import Answer, Option, Sink, Source
from ..errors import SinkError
from ..listening import split_host
from ..record import Record
from ..verdicts import Verdict
from .credentials import CREDENTIALS, Credentials, check_credentials, find_credentials
from .hostname import check_hostname, choose_hostname
from .source import HOSTNAME, LENIENT
from .upstream import Upstream

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .sender import Sender

log = logging.getLogger(__name__)

TLS_OUT = ("may", "none", "require", "verify")


class SmtpSink(Sink):
    """The next server, to which a `Sender` delivers.

    For a source that a second run reads again, there is a `Record` of each mail that is delivered. For a source that is a
    server there is nothing to remember, as clients know what they have sent.
    """

    shares = True
    delivers_soon = True
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
        login = find_credentials(credentials, env=credentials_env)
        self.upstream = self._find_upstream(tls_out or ("may" if login is None else "verify"), name, login)
        self.record = None if source is None else Record(source, self.url)
        self.remembers = self.record is not None

    def _find_upstream(self, tls_out: str, name: str, login: Credentials | None) -> Upstream:
        if self._path.startswith("unix:"):
            return Upstream(self.url, self._path.removeprefix("unix:"), name, self.lmtp, tls_out="none")
        host, port = split_host(self._path)
        if not host:
            raise SinkError(f"{self.url} does not say to which host mails are to be sent")
        verified = self.implicit_tls or tls_out == "verify"
        tls = ssl.create_default_context() if verified else _unverified()
        return Upstream(self.url, (host, port), name, self.lmtp, self.implicit_tls, tls_out, tls, login)

    def __contains__(self, id: object) -> bool:
        return self.record is not None and id in self.record

    def recipients_of(self, id: str) -> frozenset[str]:
        """Those that have the mail by an earlier run, which has others that do not."""
        return frozenset() if self.record is None else self.record.recipients_of(id)

    @property
    def takes_dsn(self) -> bool:  # type: ignore[override]
        """As far as the next server said so on the connection that was made last."""
        return "DSN" in self._sender.pool.health.extensions

    def figures(self) -> dict[str, Any]:
        return {"smtp_out": {"connections": self._sender.pool.open, "replies": dict(self._sender.replies)}}

    def begin(self, gateway: Gateway) -> None:
        from .sender import Sender  # takes its time, as it takes the client with it

        if not (gateway.source.traces or gateway.source.is_queue):
            log.warning("mails go to %s without a Received line: no server can find out that they go round in a loop", self.url)
        self.lenient = self.lenient or gateway.source.lenient
        self._sender = Sender(gateway, self)

    async def ready(self) -> None:
        await self._sender.pool.ready()

    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        return await self._sender.send(mails)

    def deliver_soon(self, mails: Sequence[Mail], token: object, answer: Answer) -> bool:
        return self._sender.soon.deliver_soon(mails, token, answer)

    def cancel(self, mails: Sequence[Mail]) -> None:
        self._sender.cancel(mails)

    def settled(self, mails: Sequence[Mail]) -> Coroutine[Any, Any, None] | None:
        return self._sender.settled(mails)

    async def end(self) -> None:
        await self._sender.close()

    async def note(self, mails: Iterable[Mail], partly: Mapping[Mail, Iterable[str]]) -> None:
        """Remember that `mails` are delivered to all their recipients, and the others to these only. Raises SinkError."""
        if self.record is not None:
            ids = [mail.origin.id for mail in mails]
            await self.record.note(ids, {mail.origin.id: recipients for mail, recipients in partly.items()})

    def close(self) -> None:
        if self.record is not None:
            self.record.close()


def _unverified() -> ssl.SSLContext:
    """For what was offered in the clear, so that it proves nothing; but who only listens learns nothing (RFC 7435)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    return tls


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
