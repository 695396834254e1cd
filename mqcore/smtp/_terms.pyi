from typing import Self, final

from .events import Service

@final
class Terms:
    def __new__(cls, service: Service) -> Self: ...
