from asyncio import Future
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, TypeVar, final

from ._dispatcher import Dispatcher
from ._message import Message
from ._stream import Stream
from ._trace import Trace
from .hooks import HookSpec
from .verdicts import Outcome

_Message = TypeVar("_Message", bound=Message)

@final
class Hook:
    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> HookSpec: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    def __call__(self, message: Message, *args: Any) -> Coroutine[Any, Any, Outcome]: ...
    def checked(self, message: Message, *args: Any) -> Coroutine[Any, Any, Outcome]: ...
    def run(
        self, message: _Message, *args: Any, done: Callable[[_Message, Outcome], object] | None = None
    ) -> Outcome | None: ...
    def run_traced(
        self, message: _Message, trace: Trace, *args: Any, done: Callable[[_Message, Outcome], object] | None = None
    ) -> Outcome | None: ...
    def run_many(
        self, messages: Iterable[_Message], *args: Any, done: Callable[[_Message, Outcome], object] | None = None
    ) -> list[Outcome | None]: ...
    def stream(
        self,
        messages: Iterable[_Message] | AsyncIterable[_Message],
        *args: Any,
        max_in_flight: int = 1000,
        ordered: bool = False,
    ) -> Stream[_Message]: ...
    def run_one(
        self, message: _Message, args: tuple[Any, ...], done: Callable[[_Message, Outcome], object] | None
    ) -> Outcome | None: ...

    def _begin_awaited(self, message: Message, args: tuple[Any, ...]) -> Outcome | None: ...
    def _wait_for(self, message: Message) -> Waiter | None: ...

@final
class Waiter:
    @property
    def future(self) -> Future[Outcome]: ...
    def end(self, message: Message) -> None: ...
    def __call__(self, message: Message, outcome: Outcome) -> None: ...
