"""A queue of RabbitMQ as a sink: `amqp://USER:PASS@HOST:PORT/VHOST?queue=NAME`, or `amqps:` with TLS."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .._mail import Mail
from ..base import Option, Sink, Source
from ..record import Record
from ..smtp.credentials import CREDENTIALS, find_credentials
from ..verdicts import Verdict
from .url import AmqpUrl, parse

if TYPE_CHECKING:
    from .._gateway import Gateway


GROWTH = 1.05
"""How much larger a mail is as JSON, mostly."""


def check_login(url: AmqpUrl, given: Mapping[str, Any]) -> None:
    """Raises ValueError unless there is one."""
    ways = [option.name for option in CREDENTIALS if option.name.replace("-", "_") in given]
    if len(ways) + (url.user is not None) != 1:
        raise ValueError(f"{url} needs one login: USER:PASS@ before its host, --credentials FILE or --credentials-env")


class AmqpSink(Sink):
    """Publishes each mail, persistent and mandatory, and is done with it when the broker has confirmed it.

    Where no client waits, as for mails from a file, what a full queue refuses, or what was on the way when the connection
    broke, is published again, with the same id: those of the latter count as `in_doubt`, since both may have arrived.
    """

    shares = True
    commits_in_parts = True
    delivers_soon = True
    options: ClassVar[Sequence[Option]] = CREDENTIALS
    scheme = "amqp"

    @classmethod
    def check(cls, path: str, given: Mapping[str, Any]) -> None:
        check_login(parse(cls.scheme, path), given)

    @classmethod
    def open(cls, path: str, source: Source, **options: Any) -> Self:
        return cls(path, source=source.path, **options)

    def __init__(
        self, path: str, *, source: Path | None = None, credentials: str | None = None, credentials_env: bool = False
    ) -> None:
        """`source`: where the mailbox lies that mails come from."""
        from .publisher import Publisher  # takes its time, which other places need not wait for

        where = parse(self.scheme, path)
        self.url = str(where)
        self.max_mail = where.max_message if where.raw else int(where.max_message / GROWTH)
        login = find_credentials(credentials, env=credentials_env) or (where.user or "", where.password or "")
        tls = ssl.create_default_context() if self.scheme == "amqps" else None
        self._record = None if source is None else Record(source, self.url)
        self.remembers = self._record is not None
        self._publisher = Publisher(where, login, tls, self._record)
        self.deliver_soon = self._publisher.deliver_soon  # type: ignore[method-assign]

    def __contains__(self, id: object) -> bool:
        return self._record is not None and id in self._record

    def figures(self) -> dict[str, Any]:
        return self._publisher.figures()

    def begin(self, gateway: Gateway) -> None:
        self._publisher.begin(gateway)

    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        return await self._publisher.deliver(mails)

    def cancel(self, mails: Sequence[Mail]) -> None:
        self._publisher.cancel(mails)

    async def end(self) -> None:
        await self._publisher.end()

    def close(self) -> None:
        if self._record is not None:
            self._record.close()


class AmqpsSink(AmqpSink):
    """With TLS; the broker's certificate is checked."""

    scheme = "amqps"
