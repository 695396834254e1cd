import asyncio
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Self

from typing_extensions import disjoint_base

from .._message import Message
from ._headers import Headers
from ._spool import Spool
from .origin import Origin
from .verdicts import Rejection

@disjoint_base
class Connection:
    helo: str | None
    tls: bool
    authenticated: bool
    data: dict[Any, Any]
    transport: asyncio.Transport | None
    forwarded: Mapping[str, str | None] | None
    def __init__(
        self,
        id: int,
        peer: str,
        helo: str | None = None,
        tls: bool = False,
        authenticated: bool = False,
        data: dict[Any, Any] | None = None,
        transport: asyncio.Transport | None = None,
        forwarded: Mapping[str, str | None] | None = None,
    ) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def peer(self) -> str: ...

@disjoint_base
class Unread: ...

@disjoint_base
class Mail(Message):
    origin: Origin
    connection: Connection | None
    rejection: Rejection | None
    results: list[dict[str, Any]]
    def __init__(
        self,
        mime: bytes,
        *,
        envelope: str | None = None,
        recipients: Iterable[str] = (),
        json: Mapping[str, Any] | None = None,
        connection: Connection | None = None,
        origin: Origin | None = None,
    ) -> None: ...
    @classmethod
    def read(cls, origin: Origin) -> Self: ...
    @property
    def mime(self) -> bytes: ...
    @mime.setter
    def mime(self, mime: bytes) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def json(self) -> dict[str, Any]: ...
    @json.setter
    def json(self, json: dict[str, Any]) -> None: ...
    @property
    def envelope(self) -> str | None: ...
    @envelope.setter
    def envelope(self, address: str | None) -> None: ...
    @property
    def recipient(self) -> str | None: ...
    @recipient.setter
    def recipient(self, address: str | None) -> None: ...
    @property
    def recipients(self) -> list[str]: ...
    @recipients.setter
    def recipients(self, addresses: Iterable[str]) -> None: ...
    @property
    def rejected_by(self) -> str | None: ...
    @property
    def discarded(self) -> bool: ...
    def reject(self, code: int, text: str) -> None: ...
    def discard(self) -> None: ...

def copy_rejected(mail: Mail, json: dict[str, Any]) -> Mail: ...
def put_in_spool(mail: Mail, spool: Spool) -> None: ...
def bytes_of(mail: Mail) -> Hashable: ...
