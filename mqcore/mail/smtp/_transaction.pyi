from collections.abc import Callable
from typing import Self, final

from ..._dispatcher import Dispatcher
from ..._hook import Hook
from .._mail import Mail
from .._writer import Writer
from ..message import Rejection
from ..report import Counts
from .sender import Sender

FAILED: Rejection

@final
class Transaction:
    def __new__(cls, desk: Desk, mails: list[Mail], answer: Callable[[Rejection | None], object]) -> Self: ...

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
