from collections.abc import Callable
from typing import Self, final

from ._histogram import Histogram
from ._transaction import Transaction
from .base import Store

BATCH: int
BATCH_BYTES: int

@final
class Writer:
    def __new__(
        cls,
        store: Store | None,
        failed: Store | None,
        done: Callable[[Transaction, bool, bool], object],
        dropped: Callable[[Transaction], object],
        on_error: Callable[[str], object],
        goes_on: bool,
        seconds: Histogram,
        sizes: Histogram,
    ) -> Self: ...
    async def run(self) -> None: ...
