from typing import final

MEMORY: int

@final
class Memory:
    @property
    def used(self) -> int: ...

@final
class SpoolFile: ...

@final
class Spooled:
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Spool:
    def __new__(cls, memory: Memory) -> Spool: ...
