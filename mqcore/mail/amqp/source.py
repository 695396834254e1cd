"""A queue of RabbitMQ as a source: `amqp://USER:PASS@HOST:PORT/VHOST?queue=NAME`, or `amqps:` with TLS."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..base import Option, Source
from ..errors import SinkError, SourceError
from ..smtp.credentials import CREDENTIALS, find_credentials
from .sink import check_login
from .url import parse

if TYPE_CHECKING:
    from .._gateway import Gateway
    from .consumer import Consumer


class AmqpSource(Source):
    """Messages are acknowledged when their mails are with the next owner. What is deferred or fails comes again, by queues in
    which it waits; what is refused goes to the queue of what failed, or where the gateway has that."""

    finite = False
    has_waiting_client = True
    is_queue = True
    shares = True
    single_mail = True
    knows_recipients = True
    traces = False
    longest_hold = 1500.0
    ends_when = "what the plugins are done with is with its next owner"
    options: ClassVar[Sequence[Option]] = CREDENTIALS
    scheme = "amqp"
    _consumer: Consumer | None = None

    @classmethod
    def check(cls, path: str, given: Mapping[str, Any]) -> None:
        url = parse(cls.scheme, path, "--from")
        if url.user is None:  # else these are for the sink
            check_login(url, given)

    def __init__(
        self,
        path: str,
        *,
        credentials: str | None = None,
        credentials_env: bool = False,
        starts_slowly: bool = False,
    ) -> None:
        """Raises SourceError. Nothing is connected before `run`. `starts_slowly`: begin with few messages, as in place of a
        process that has ended while it had some: one of them may have been the reason."""
        self.where = parse(self.scheme, path, "--from")
        self.url = str(self.where)
        self._login = self.where.user or "", self.where.password or ""
        if self.where.user is None:
            try:
                self._login = find_credentials(credentials, env=credentials_env) or self._login
            except SinkError as error:
                raise SourceError(str(error)) from error
        self._tls = ssl.create_default_context() if self.scheme == "amqps" else None
        self._is_stopped = False
        self._starts_slowly = starts_slowly

    async def run(self, gateway: Gateway) -> None:
        from .consumer import Consumer  # takes its time, which other places need not wait for

        if self._is_stopped:
            return
        self._consumer = Consumer(self.where, self._login, self._tls, gateway, starts_slowly=self._starts_slowly)
        await self._consumer.run()

    def stop(self) -> None:
        self._is_stopped = True
        if self._consumer is not None:
            self._consumer.stop()

    async def end(self) -> None:
        if self._consumer is not None:
            await self._consumer.end()

    def figures(self) -> dict[str, Any]:
        return {} if self._consumer is None else {"amqp_in": self._consumer.figures()}


class AmqpsSource(AmqpSource):
    """With TLS; the broker's certificate is checked."""

    scheme = "amqps"
