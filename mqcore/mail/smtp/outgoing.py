"""One connection to the next server, and the transactions on it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Self, cast

from ...smtp.client import USUAL, ClientProtocol, Terms
from ...smtp.replies import ProtocolError, Reply
from ..errors import speaks_no_tls
from ._soon import Job, Link
from .credentials import Credentials
from .upstream import Health, Upstream

CONNECT_TIMEOUT = 30.0
"""Seconds, for the connection, for TLS, and for each reply until the server is ready."""
COMMAND_TIMEOUT = 300.0
ANSWER_TIMEOUT = 600.0
"""Seconds from the end of a message to its reply (RFC 5321, 4.5.3.2.6): who waits for less sends mails twice."""
MIN_RATE = 1000
"""Octets of a message that the server takes in a second, in the long run."""


class Unreachable(Exception):
    """There is no connection to the next server, or it does not want to talk to us. `final`: nor will it later."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class NoneFree(Unreachable):
    """All connections are in use, and this mail waits for none."""


class Lost(Exception):
    """The connection broke within a transaction, or the server closes it, or what it said is no reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


class StartTlsFailed(Unreachable):
    """The server refused TLS, or it broke."""


class Client(Link, asyncio.Protocol):
    """One connection, for one transaction after the other. Made by `connect`."""

    def __init__(self, upstream: Upstream, health: Health) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(self._loop)
        self._upstream = upstream
        self._health = health
        self._protocol = ClientProtocol(
            upstream.name, lmtp=upstream.lmtp, secure=upstream.implicit_tls, pipelining=health.pipelining
        )
        self._end: asyncio.Future[Reply] | None = self._loop.create_future()
        """Of what is being asked for; first, of the greeting."""
        self._error = ""
        """Why the connection is gone."""
        self.timeout = CONNECT_TIMEOUT
        self.answer_timeout = ANSWER_TIMEOUT
        self.min_rate = MIN_RATE
        self._timer: asyncio.TimerHandle | None = None

    # Connecting

    @classmethod
    async def connect(cls, upstream: Upstream, health: Health) -> Self:
        """Raises Unreachable."""
        client = await cls._connect(upstream, health)
        if upstream.credentials is not None:
            await client._log_in(upstream.credentials)
        protocol = client._protocol
        extensions = protocol.extensions
        client.offers(extensions, most=protocol.size_limit, pipelining=health.pipelining, lmtp=upstream.lmtp)
        health.extensions = frozenset(extensions)
        return client

    @classmethod
    async def _connect(cls, upstream: Upstream, health: Health) -> Self:
        client = await cls._open(upstream, health)
        if not client._wants_tls():
            return client
        now = client._loop.time
        if not health.is_clear(now()):
            try:
                await client._start_tls()
            except StartTlsFailed as error:
                if upstream.tls_out != "may":
                    raise
                health.starttls_failed(now(), str(error))
                if not health.is_clear(now()):
                    raise
            else:
                health.starttls_worked()
                return client
            client = await cls._open(upstream, health)
        client.is_clear = True
        return client

    @classmethod
    async def _open(cls, upstream: Upstream, health: Health) -> Self:
        """As far as the first EHLO."""
        client = cls(upstream, health)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await client._reach()
            hello = await client._run()
        except BaseException as error:
            client.close()
            if isinstance(error, (OSError, Lost)):
                raise _explain(error) from error
            raise
        if not hello.is_positive:
            client.close()
            raise Unreachable(f"it says {hello}", final=hello.is_final)
        client.timeout = COMMAND_TIMEOUT
        return client

    async def _reach(self) -> None:
        loop, address = self._loop, self._upstream.address
        if isinstance(address, str):
            await loop.create_unix_connection(lambda: self, address)
        elif self._upstream.implicit_tls:
            await loop.create_connection(lambda: self, *address, ssl=self._upstream.tls, server_hostname=address[0])
        else:
            await loop.create_connection(lambda: self, *address)

    def _wants_tls(self) -> bool:
        upstream = self._upstream
        if upstream.implicit_tls or upstream.tls_out == "none":
            return False
        return upstream.tls_out != "may" or "STARTTLS" in self._protocol.extensions

    async def _start_tls(self) -> None:
        """Raises StartTlsFailed, and the connection is closed then."""
        self.timeout = CONNECT_TIMEOUT
        try:
            await self._shake_hands()
            hello = await self._ask(self._protocol.secured)
            if not hello.is_positive:
                raise StartTlsFailed(f"after STARTTLS it says {hello}")
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, Lost)):
                why = _explain(error)
                raise StartTlsFailed(f"STARTTLS failed: {why}", final=why.final) from error
            raise
        self.timeout = COMMAND_TIMEOUT

    async def _log_in(self, credentials: Credentials) -> None:
        """Raises Unreachable, and the connection is closed then: mails are kept, as it is no fault of theirs."""
        try:
            if not {"PLAIN", "LOGIN"}.intersection(self._protocol.mechanisms):
                raise Unreachable("it offers neither AUTH PLAIN nor LOGIN, but there are credentials for it", final=True)
            reply = await self._ask(lambda: self._protocol.login(*credentials))
            if not reply.is_positive:
                raise Unreachable(f"it does not take the credentials of {credentials.login!a}: {reply}", final=reply.is_final)
        except BaseException as error:
            self.close()
            if isinstance(error, Lost):
                raise Unreachable(f"the connection broke at the login: {error}") from error
            raise

    async def _shake_hands(self) -> None:
        if "STARTTLS" not in self._protocol.extensions:
            raise StartTlsFailed("it does not offer STARTTLS")
        reply = await self._ask(self._protocol.start_tls)
        if reply.code != 220:
            raise StartTlsFailed(f"STARTTLS is refused: {reply}")
        if self._error:  # it said more, which somebody may have put there
            raise self._lost()
        assert self._transport is not None and self._upstream.tls is not None
        transport = await self._loop.start_tls(
            self._transport,
            self,
            self._upstream.tls,
            server_hostname=self._upstream.address[0],
            ssl_handshake_timeout=CONNECT_TIMEOUT,
        )
        if transport is None:
            raise StartTlsFailed("STARTTLS failed: the server closed the connection")
        self.use(transport)

    # What the pool and deliveries ask for

    @property
    def is_in_doubt(self) -> bool:
        """Whether a message is sent and not all replies to it came."""
        return self._protocol.in_doubt

    @property
    def replies(self) -> dict[str, Reply]:
        """Of the last transaction, to each recipient for whom it has ended."""
        return self._protocol.replies

    @property
    def is_reusable(self) -> bool:
        """Whether the server keeps the connection open, no transaction was left in the middle, and nothing came unasked: what
        is not read yet would be taken for the reply to the next command."""
        return not (self._error or self.is_open) and self._protocol.is_idle and not self.is_readable()

    @property
    def recipients(self) -> Sequence[str]:
        """Of the last transaction."""
        return self._protocol.recipients

    def close(self) -> None:
        self._fail("the connection was closed")

    async def quit(self) -> None:
        """Say goodbye, and close, also where nobody waits for the answer any more."""
        self.timeout = CONNECT_TIMEOUT
        try:
            with contextlib.suppress(Lost):
                await self._ask(self._protocol.quit)
        finally:
            self.close()

    async def send(
        self,
        sender: str,
        recipients: Sequence[str],
        content: bytes,
        *,
        blocks: Callable[[Reply], bool] | None = None,
        terms: Terms = USUAL,
    ) -> dict[str, Reply]:
        """One transaction, and the reply to each recipient. Raises Lost; `replies` has those that came.

        If the reply to a RCPT `blocks`, the message is not sent to anybody; those whom the server would have taken keep
        the reply to theirs.
        """
        if self._protocol.send(sender, recipients, content, blocks, terms) is not None:
            return self._protocol.replies  # nothing was asked for, as it would not be taken
        self.is_open = True
        await self._run()
        return await self._conclude()

    async def go_on(self) -> dict[str, Reply]:
        """`send`, for a transaction that has begun without it."""
        await self._wait()
        return await self._conclude()

    async def _conclude(self) -> dict[str, Reply]:
        """Leave the connection as one for the next transaction."""
        replies = self._protocol.replies
        self.is_open = not any(reply.is_delivered for reply in replies.values())
        if self.is_open and not self._error:
            with contextlib.suppress(Lost):  # the replies hold all the same
                self.is_open = not (await self._ask(self._protocol.reset)).is_positive
        self.is_used = True
        return replies

    async def _ask(self, command: Callable[[], None]) -> Reply:
        if self._error:
            raise self._lost()
        command()
        return await self._run()

    async def _run(self) -> Reply:
        """Wait until what was asked for has ended. Raises Lost."""
        if self._error:
            raise self._lost()
        if self._end is None:
            self._end = self._loop.create_future()
        self._write()
        return await self._wait()

    async def _wait(self) -> Reply:
        assert self._end is not None
        try:
            end = await self._end
        finally:
            self._end = None
        if self._protocol.closed:
            self.close()
            if end.code == 421 and end.state in ("mailfrom", "rcptto", "data", "rset"):
                raise Lost(end)
        return end

    def _lost(self) -> Lost:
        return Lost(Reply(self._protocol.state, None, self._error))

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.use(cast("asyncio.Transport", transport))
        if self._error:
            transport.abort()  # type: ignore[attr-defined]

    def hear(self, data: bytes) -> None:
        if self._error or self._transport is None:
            return
        protocol, heard = self._protocol, self._protocol.heard
        flushed = not protocol.in_doubt or self._transport.get_write_buffer_size() == 0
        try:
            end = protocol.receive(data, flushed=flushed)
        except ProtocolError as error:
            self._fail(str(error), out_of_step=True)
            return
        if end is not None and self._end is not None and not self._end.done():
            self._end.set_result(end)
        elif protocol.heard != heard:
            self._write()

    def begin_anew(self, job: Job, before: bytes, after: bytes | None) -> None:
        self._end = self._loop.create_future()
        self._protocol.send(job.envelope, job.recipients, job.content)
        self._protocol.take_output()  # which has left, as has the message if there is something after it
        if after is None:
            self.hear(before)
        else:
            self._protocol.receive(before)
            self._protocol.take_output()
            self.hear(after)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(_reason(error) if error is not None else "the server closed the connection")

    def _write(self) -> None:
        """What is to be written, and the time for its reply."""
        timeout = self.timeout
        output = self._protocol.take_output()
        if output and self._transport is not None:
            if self._protocol.in_doubt:
                timeout = ANSWER_TIMEOUT + len(output) / MIN_RATE
            self._transport.write(output)
        self.expect(timeout)

    def set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self.deadline, self._look)
        self.due = self.deadline

    def _look(self) -> None:
        """The time may be over."""
        self._timer = None
        self.due = 0.0
        if self._end is None and not self.is_sending:
            return
        if self._loop.time() < self.deadline:
            self.set_timer()
        else:
            self._fail("timed out", out_of_step=True)

    def _fail(self, reason: str, *, out_of_step: bool = False) -> None:
        """The connection is no more."""
        if self.is_sending:
            self.go_slowly()
        if self._error:
            return
        self._error = reason
        protocol = self._protocol
        if out_of_step and protocol.pipelined and protocol.state in ("mailfrom", "rcptto", "data"):
            self._health.pipelining = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.due = 0.0
        if self._transport is not None:
            self._transport.abort()
        if self._end is not None and not self._end.done():
            self._end.set_exception(self._lost())
            self._end.exception()  # nobody may wait for it any more


def _explain(error: Exception) -> Unreachable:
    """Why there is no connection."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    no_such_host = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    final = no_such_host or isinstance(cause, ssl.SSLCertVerificationError)
    return Unreachable(_reason(cause), final=final)


def _reason(error: BaseException) -> str:
    """What the system says."""
    if isinstance(error, TimeoutError):
        return "timed out"
    reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return reason + speaks_no_tls(error)
