import asyncio
from collections.abc import Callable
from typing import Self, final

from .._gateway import Gateway
from ._session import Session

@final
class MilterHost:
    most: int
    def __new__(
        cls,
        loop: asyncio.AbstractEventLoop,
        gateway: Gateway,
        changed: Callable[[], object],
        *,
        max_message: int,
        most: int,
    ) -> Self: ...
    @property
    def sessions(self) -> dict[Session, None]: ...
    @property
    def entered(self) -> int: ...
    @property
    def is_stopping(self) -> bool: ...
    def stop(self) -> None: ...
