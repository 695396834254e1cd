from collections.abc import Callable, Sequence
from typing import Any, final

from typing_extensions import disjoint_base

from ...amqp.client import Outcome
from .._mail import Mail
from ..base import Answer
from ..report import Counts
from .connection import Connection

@final
class Waiter: ...

@disjoint_base
class Outcomes:
    most: int
    def __init__(self, counts: Counts, most: int) -> None: ...
    @property
    def unconfirmed(self) -> int: ...
    @property
    def outcomes(self) -> dict[str, int]: ...
    def look_again(self) -> None: ...
    def begin_channel(self, channel: int) -> None: ...
    def take(self, outcome: Outcome) -> None: ...
    def let_go(self) -> None: ...
    def publish(
        self,
        connection: Connection,
        exchange: str,
        queue: str,
        properties: bytes,
        body: bytes,
        take: Callable[[Any, Outcome | None], object],
        key: object,
    ) -> None: ...

@disjoint_base
class Soon:
    def __init__(self, exchange: str, queue: str, *, raw: bool, is_careful: bool) -> None: ...
    @property
    def voided(self) -> set[int]: ...
    def begin_soon(self, outcomes: Outcomes) -> None: ...
    def deliver_soon(self, mails: Sequence[Mail], token: object, answer: Answer) -> bool: ...
