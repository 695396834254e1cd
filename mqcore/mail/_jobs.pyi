from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Self, final

from typing_extensions import disjoint_base

@disjoint_base
class Job: ...

@final
class JobThread:
    def __new__(cls, loop: AbstractEventLoop, ended: Callable[[Job], object]) -> Self: ...
    def begin(self, job: Job) -> None: ...
    def close(self) -> None: ...
