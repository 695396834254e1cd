from collections.abc import Callable, Sequence

from ..._dispatch import Dispatcher, Hook
from ..._message import Message
from ...verdicts import Outcome
from .._mail import Mail
from ..message import Rejection
from ..report import Counts
from ..writer import Finished, Writer
from .sender import Sender

FAILED: Rejection

class Transaction:
    def __init__(self, desk: Desk, mails: list[Mail], answer: Callable[[Rejection | None], object]) -> None: ...
    @property
    def mails(self) -> list[Mail]: ...
    @property
    def is_storing(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    def cancel(self) -> None: ...
    def take_verdict(self, mail: Message, outcome: Outcome) -> None: ...
    def after_sending(self, mails: Sequence[Finished], finished: bool, delivered: bool) -> None: ...
    def after_storing(self, mails: Sequence[Finished], stored: bool) -> None: ...

class Desk:
    def __init__(
        self,
        dispatcher: Dispatcher,
        hook: Hook,
        writer: Writer,
        sender: Sender | None,
        counts: Counts,
        max_in_flight: int,
    ) -> None: ...
    @property
    def in_flight(self) -> int: ...
    def submit(self, transaction: Transaction) -> None: ...
    def turn_away(self, count: int, *, failed: bool) -> None: ...
