"""Where mails are delivered to, and what went wrong there before."""

from __future__ import annotations

import logging
import ssl
from typing import NamedTuple

from .credentials import Credentials

CLEAR_AFTER = 300.0
"""Seconds for which STARTTLS must have failed before mails go in the clear; for as long they do, until it is tried again."""

log = logging.getLogger(__name__)


class Upstream(NamedTuple):
    """The next server, and as whom and how it is spoken to."""

    url: str
    address: tuple[str, int] | str
    """Host and port, or the path of a Unix socket."""
    name: str
    """The host name that we say we are."""
    lmtp: bool = False
    implicit_tls: bool = False
    tls_out: str = "may"
    """What becomes of STARTTLS: none, may, require, or verify."""
    tls: ssl.SSLContext | None = None
    credentials: Credentials | None = None
    """With these TLS is a must."""


class Health:
    """What a server got wrong, for the next connection to it."""

    def __init__(self, url: str) -> None:
        self.pipelining = True
        """False once it did not reply to commands that came together."""
        self.extensions: frozenset[str] = frozenset()
        """What it offered on the connection that was made last."""
        self._url = url
        self._failing_since: float | None = None
        self._clear_until = 0.0

    def starttls_worked(self) -> None:
        self._failing_since = None

    def starttls_failed(self, now: float, reason: str) -> None:
        if self._failing_since is None:
            self._failing_since = now
        if now >= self._failing_since + CLEAR_AFTER:
            self._clear_until = now + CLEAR_AFTER
            log.warning("STARTTLS of %s has failed for %g s (%s): mails go in the clear", self._url, CLEAR_AFTER, reason)

    def is_clear(self, now: float) -> bool:
        """Whether STARTTLS has failed for so long that mails go without it."""
        return now < self._clear_until

    def next_change(self, now: float) -> float | None:
        """Seconds until mails would go in the clear, if STARTTLS goes on failing."""
        if self._failing_since is None or now >= self._failing_since + CLEAR_AFTER:
            return None
        return self._failing_since + CLEAR_AFTER - now
