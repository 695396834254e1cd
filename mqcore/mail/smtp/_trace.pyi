from typing import Self, final

@final
class Tracer:
    def __new__(cls, hostname: str, url: str) -> Self: ...
    @property
    def id(self) -> str: ...
