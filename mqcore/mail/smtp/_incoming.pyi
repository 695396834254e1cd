from typing import Self, final

@final
class Incoming:
    def __new__(cls) -> Self: ...
