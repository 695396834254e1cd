from collections.abc import Callable
from typing import Self, final

from ._histogram import Histogram
from ._transaction import Transaction
from .base import BaseSink
from .verdicts import Verdict

@final
class Deliverer:
    def __new__(
        cls,
        sink: BaseSink,
        delivered: Callable[[Transaction, list[Verdict]], object],
        dropped: Callable[[Transaction], object],
        released: Callable[[Transaction], object],
        on_error: Callable[[str], object],
        seconds: Histogram,
        sizes: Histogram,
    ) -> Self: ...
