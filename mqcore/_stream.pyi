from collections.abc import Awaitable, Coroutine
from typing import Any, Generic, Self, TypeVar, final

from ._message import Message
from .verdicts import Outcome

_Message = TypeVar("_Message", bound=Message)

@final
class Stream(Generic[_Message]):
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[tuple[_Message, Outcome]]: ...
    def aclose(self) -> Coroutine[Any, Any, None]: ...
