import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Self, final

from ...smtp.events import Service
from .._gateway import Gateway
from ..verdicts import Rejection
from ._connection import SmtpConnection
from ._counters import SmtpCounters
from ._trace import Tracer
from .logins import FailedLogins
from .networks import Networks

@final
class Host:
    is_stopping: bool
    is_held_off: bool
    def __new__(
        cls,
        loop: asyncio.AbstractEventLoop,
        gateway: Gateway,
        make_service: Callable[[], Service],
        tracer: Tracer | None,
        *,
        implicit_tls: bool,
        xclient_from: Networks,
        xforward_from: Networks,
        max_reserved: int,
    ) -> Self: ...
    def configure(
        self, *, tls: ssl.SSLContext | None, timeout: float, max_connections: int, max_from_network: int | None
    ) -> None: ...
    @property
    def counters(self) -> SmtpCounters: ...
    @property
    def connections(self) -> dict[SmtpConnection, str]: ...
    @property
    def from_network(self) -> Counter[str]: ...
    @property
    def tracer(self) -> Tracer | None: ...
    @property
    def failed_logins(self) -> FailedLogins: ...
    @property
    def entered(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    async def wait_until_empty(self) -> None: ...
    def network_of(self, peer: str) -> str: ...
    def find_excess(self, network: str, handshakes: int, peer: str) -> Rejection | None: ...
    def join(self, network: str) -> None: ...
    def part(self, network: str) -> None: ...
