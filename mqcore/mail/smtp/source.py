"""Servers as a source: `smtp://HOST:PORT`, `smtps://HOST:PORT`, `lmtp://HOST:PORT`, and Unix sockets (`lmtp:unix:PATH`)."""

from __future__ import annotations

import hashlib
import inspect
import ssl
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ...smtp.limits import MAX_MESSAGE, MAX_RECIPIENTS
from ..base import Option, Prepared, Source
from ..errors import SourceError, describe
from ..listening import Listening, split_host
from .certificate import read_not_after
from .hostname import check_hostname, choose_hostname
from .networks import TRUST, Networks, check_networks

if TYPE_CHECKING:
    import socket

    from ...plugins import Plugin
    from .._gateway import Gateway
    from .server import SmtpServer


HOSTNAME = Option(
    "hostname", "full name of this machine, for the greeting, EHLO and Received lines (default: as it knows it)", "NAME"
)
LENIENT = Option(
    "lenient", "take, and send on, what the server in front took though no RFC allows it (always with --from lmtp:)"
)


class SmtpSource(Source):
    """Sockets that listen, and what is offered to those who connect; an `SmtpServer` does the rest.

    With `implicit_tls` (smtps) TLS begins at once, otherwise with STARTTLS, if there is a certificate. `tls_key` is None if it
    is in the same file as the certificate.
    """

    finite = False
    shares = True
    listens = True
    has_waiting_client = True
    knows_recipients = True
    ends_when = "the transactions that are open are over"
    implicit_tls = False
    lmtp = False
    scheme = "smtp"
    options: ClassVar[Sequence[Option]] = (
        Option("tls-certificate", "certificate, in PEM, with those that it depends on", "FILE"),
        Option("tls-key", "its key, if that is not in the same file", "FILE"),
        Option("auth-without-tls", "let passwords be sent in the clear"),
        Option("require-tls", "take no mail from a client that has not begun TLS"),
        Option("require-login", "take no mail from a client that has not logged in"),
        Option("one-recipient", "let a transaction have one recipient, and ask clients to send to others afterwards"),
        HOSTNAME,
        LENIENT,
        *TRUST,
        Option("no-trace", "add no Received line to mails, nor Delivered-To and Return-Path in mailboxes"),
        Option("max-loops", "how often a mail may come again (default: 10)", "N", is_number=True),
        Option("max-message-size", "octets that a mail may have (default: 52428800)", "N", is_number=True),
        Option("max-recipients", "recipients that a transaction may have (default: 1000)", "N", is_number=True),
        Option("max-connections", "clients that may be there at once (default: 20000)", "N", is_number=True),
        Option("max-connections-per-ip", "those from one address, or IPv6 network (/64; default: all)", "N", is_number=True),
        Option("timeout", "seconds that a client has for a command (default: 300)", "N", is_number=True),
    )
    changeable = frozenset(
        {
            "tls_certificate",
            "tls_key",
            "auth_without_tls",
            "require_tls",
            "require_login",
            "max_loops",
            "max_message_size",
            "max_recipients",
            "max_connections",
            "max_connections_per_ip",
            "timeout",
        }
    )
    _server: SmtpServer | None = None

    def __init__(
        self,
        path: str,
        *,
        tls_certificate: str | None = None,
        tls_key: str | None = None,
        auth_without_tls: bool = False,
        require_tls: bool = False,
        require_login: bool = False,
        one_recipient: bool = False,
        hostname: str | None = None,
        lenient: bool = False,
        proxy_from: str | None = None,
        xclient_from: str | None = None,
        xforward_from: str | None = None,
        no_trace: bool = False,
        max_loops: int = 10,
        max_message_size: int = MAX_MESSAGE,
        max_recipients: int = MAX_RECIPIENTS,
        max_connections: int | None = None,
        max_connections_per_ip: int | None = None,
        timeout: float = 300.0,
        listening: Listening | None = None,
    ) -> None:
        """`path` is `//HOST:PORT`, `unix:PATH` or `systemd`. `max_message_size` is in octets, `timeout` in seconds.
        `listening`: where there are sockets already, as of a supervisor; it is closed with this."""
        self.hostname = choose_hostname(hostname)
        self.traces = not no_trace
        self.lenient = lenient or self.lmtp
        self.proxy_from = Networks("proxy-from", proxy_from)
        self.xclient_from = Networks("xclient-from", xclient_from)
        self.xforward_from = Networks("xforward-from", xforward_from)
        self.max_loops = max_loops
        self.single_mail = one_recipient
        self.auth_without_tls = auth_without_tls
        self.require_tls = require_tls
        self.require_login = require_login
        self.max_message_size = max_message_size
        self.max_recipients = 1 if one_recipient else max_recipients
        self.max_connections = max_connections
        self.max_connections_per_ip = max_connections_per_ip
        self.timeout = timeout
        self._files = _digest_of(tls_certificate, tls_key)
        self.tls = None if tls_certificate is None else _load(tls_certificate, tls_key)
        self._not_after = read_not_after(tls_certificate)
        self._listening = listening or Listening(self.scheme, path)
        self.url = self._listening.url
        self.port = self._listening.port

    @property
    def listeners(self) -> Sequence[socket.socket]:
        return self._listening.listeners

    @classmethod
    def check(cls, path: str, given: Mapping[str, Any]) -> None:
        if "tls_certificate" in given and path.startswith("unix:"):
            raise ValueError(f"--tls-certificate is for --from {cls.scheme}://HOST:PORT; a socket on this machine needs no TLS")
        if cls.implicit_tls and "tls_certificate" not in given:
            raise ValueError(f"--from {cls.scheme}: needs --tls-certificate")
        if "tls_key" in given and "tls_certificate" not in given:
            raise ValueError("--tls-key needs --tls-certificate")
        if "hostname" in given:
            check_hostname(given["hostname"])
        check_networks(path, given, cls.scheme)
        if "require_tls" in given and "tls_certificate" not in given:
            raise ValueError("--require-tls needs --tls-certificate")
        if "require_login" in given and not ("tls_certificate" in given or "auth_without_tls" in given):
            raise ValueError("--require-login needs --tls-certificate, or --auth-without-tls")
        if "one_recipient" in given and "max_recipients" in given:
            raise ValueError("--one-recipient is --max-recipients 1; give one of them")
        if "max_connections_per_ip" in given and path.startswith("unix:"):
            raise ValueError(f"--max-connections-per-ip is for --from {cls.scheme}://HOST:PORT; a Unix socket has no addresses")
        if "no_trace" in given and "max_loops" in given:
            raise ValueError("--max-loops counts Received lines, which --no-trace leaves out")

    async def run(self, gateway: Gateway) -> None:
        from .server import SmtpServer  # takes its time, which a mailbox need not wait for

        self._server = SmtpServer(self, gateway)
        if gateway.is_draining:
            self._server.stop()
        await self._server.run()

    def prepare(self, options: Mapping[str, Any]) -> Prepared:
        """Those who connect from then on have them; TLS that began goes on as it began."""
        defaults = inspect.signature(SmtpSource.__init__).parameters
        values = {name: options.get(name, defaults[name].default) for name in self.changeable}
        certificate, key = values.pop("tls_certificate"), values.pop("tls_key")
        if self.single_mail:
            values["max_recipients"] = 1
        check = partial(check_logins, values["require_login"])
        if certificate is None and self.tls is not None:  # somebody may be about to begin it
            return Prepared(lambda: self._configure(values), needs_restart=("tls-certificate",), check=check)
        files = _digest_of(certificate, key)
        changed = ("the certificate",) if files != self._files else ()
        values |= {"tls": None if certificate is None else _load(certificate, key), "_files": files}
        values["_not_after"] = read_not_after(certificate)
        return Prepared(lambda: self._configure(values), changed, check=check)

    def _configure(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)
        if self._server is not None:
            self._server.configure()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def hold_off(self, is_held_off: bool) -> None:
        if self._server is not None:
            self._server.hold_off(is_held_off)

    def cut(self) -> None:
        if self._server is not None:
            self._server.cut()

    def figures(self) -> dict[str, Any]:
        return {} if self._server is None else {"smtp": self._server.figures(), "certificate_not_after": self._not_after}

    def close(self) -> None:
        self._listening.close()


class SmtpsSource(SmtpSource):
    implicit_tls = True
    scheme = "smtps"


class LmtpSource(SmtpSource):
    """As a server is spoken to that delivers to mailboxes: each recipient has a reply of its own (RFC 2033), so that a refusal
    of one holds back no other."""

    settles_each = True
    lmtp = True
    scheme = "lmtp"
    options = tuple(option for option in SmtpSource.options if option.name != "one-recipient")

    @classmethod
    def check(cls, path: str, given: Mapping[str, Any]) -> None:
        super().check(path, given)
        if path.startswith("//") and split_host(path)[1] == 25:
            raise ValueError("--from lmtp: does not listen on port 25, where clients expect SMTP (RFC 2033, 5)")


def check_logins(required: bool, plugins: Iterable[Plugin]) -> None:
    """Raise SourceError if a login is required and none of these plugins takes any."""
    if required and not any("mq_smtp_in_authenticate" in plugin.hooks for plugin in plugins):
        raise SourceError("--require-login: no plugin has the hook mq_smtp_in_authenticate, so nobody could log in")


def _load(certificate: str, key: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for file in filter(None, (certificate, key)):
        # OpenSSL does not say which of them it could not read.
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise SourceError(f"cannot read {file}: {describe(error, file)}") from error
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        where = certificate if key is None else f"{certificate} with the key {key}"
        reason = getattr(error, "reason", error)  # OpenSSL gives none where it finds nothing to read
        if reason == "KEY_VALUES_MISMATCH":
            reason = "the key is that of another certificate; give the one that was made with it"
        raise SourceError(
            f"cannot use {where} for TLS: {reason or 'a certificate and its key, in PEM, are not there'}"
        ) from error
    return context


def _digest_of(*files: str | None) -> str:
    """Of what is in them, which shows whether a reload found others; empty if one cannot be read, which `_load` tells of."""
    digest = hashlib.sha256()
    for file in filter(None, files):
        try:
            with open(file, "rb") as opened:
                digest.update(opened.read())
        except OSError:
            return ""
    return digest.hexdigest()


def _no_password() -> str:
    """In place of a prompt that would stop a server."""
    raise ValueError("the key has a password; take it away with `openssl pkey`")
