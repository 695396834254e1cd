from collections.abc import Callable, Sequence
from typing import Self, TypeAlias, final

from .. import Outcome
from ._mail import Mail
from .base import Sink
from .failed import FailedSink
from .report import Report

BATCH: int
BATCH_BYTES: int
Finished: TypeAlias = tuple[Mail, Outcome]
Done: TypeAlias = Callable[[Sequence[Finished], bool], object]

@final
class Writer:
    def __new__(cls, sink: Sink, failed: FailedSink | None, report: Report, on_error: Callable[[], object]) -> Self: ...
    def add(self, mails: Sequence[Finished], done: Done) -> None: ...
    def close(self) -> None: ...
    async def run(self) -> None: ...
