from collections.abc import Callable
from typing import Final, Protocol, TypeVarTuple, final, type_check_only

from typing_extensions import disjoint_base

_Args = TypeVarTuple("_Args")

READ: Final = 1
WRITE: Final = 2

@type_check_only
class _HasFileno(Protocol):
    def fileno(self) -> int: ...

@disjoint_base
class Lifetime:
    def start_timer(self, seconds: float, callback: Callable[[*_Args], object], *args: *_Args) -> Timer: ...
    def watch(
        self, fd: int | _HasFileno, events: int, callback: Callable[[Watcher, int, *_Args], object], *args: *_Args
    ) -> Watcher: ...

@disjoint_base
class WatchHandle:
    def stop(self) -> bool: ...

@final
class Timer(WatchHandle):
    def reset(self, seconds: float) -> None: ...

@final
class Watcher(WatchHandle):
    @property
    def fd(self) -> int: ...
    @property
    def events(self) -> int: ...
    @events.setter
    def events(self, events: int) -> None: ...
    @property
    def error(self) -> OSError | None: ...
