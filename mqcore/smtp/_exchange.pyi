from typing import final

@final
class Exchange:
    @property
    def said(self) -> bytes: ...
    @property
    def before(self) -> int: ...
    @property
    def replies(self) -> list[tuple[int, str]]: ...
