from typing import Self, final

@final
class Macros:
    def __new__(cls) -> Self: ...
