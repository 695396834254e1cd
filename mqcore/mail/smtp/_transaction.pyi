from collections.abc import Callable
from typing import Self, final

from ..._dispatch import Dispatcher, Hook
from .._mail import Mail
from ..message import Rejection
from ..report import Counts
from ..writer import Writer
from .sender import Sender

FAILED: Rejection

@final
class Transaction:
    def __new__(cls, desk: Desk, mails: list[Mail], answer: Callable[[Rejection | None], object]) -> Self: ...
    @property
    def mails(self) -> list[Mail]: ...
    @property
    def is_storing(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    def cancel(self) -> None: ...

@final
class Desk:
    def __new__(
        cls,
        dispatcher: Dispatcher,
        hook: Hook,
        writer: Writer,
        sender: Sender | None,
        counts: Counts,
        max_in_flight: int,
    ) -> Self: ...
    @property
    def in_flight(self) -> int: ...
    def submit(self, transaction: Transaction) -> None: ...
    def turn_away(self, count: int, *, failed: bool) -> None: ...
