from collections.abc import Callable
from collections.abc import Set as AbstractSet
from mmap import mmap
from typing import Self, final

@final
class Hand:
    suspects: AbstractSet[int]
    refused: AbstractSet[int]
    survived: Callable[[int], object]
    def __new__(cls, memory: mmap, begin: int, seed: int) -> Self: ...
