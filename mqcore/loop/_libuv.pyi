from typing import final

@final
class Library:
    @property
    def owner(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> str: ...
