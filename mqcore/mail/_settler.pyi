from typing import Self, final

from .base import Source
from .refusals import Refusals
from .report import Counts

@final
class Settler:
    def __new__(cls, source: Source, counts: Counts, refusals: Refusals, sets_aside: bool) -> Self: ...
    @property
    def bytes_out(self) -> int: ...
