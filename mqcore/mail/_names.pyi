from typing import Self, final

@final
class Names:
    def __new__(cls) -> Self: ...
