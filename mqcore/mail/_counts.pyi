from mmap import mmap
from typing import Self, final, overload

from typing_extensions import disjoint_base

SIZE: int

@disjoint_base
class Row:
    def __new__(cls, memory: mmap | None = None, **values: int) -> Self: ...

@final
class Cell:
    def __new__(cls, place: int) -> Self: ...
    @overload
    def __get__(self, instance: None, owner: type[Row] | None = None, /) -> Self: ...
    @overload
    def __get__(self, instance: Row, owner: type[Row] | None = None, /) -> int: ...
    def __set__(self, instance: Row, value: int, /) -> None: ...
