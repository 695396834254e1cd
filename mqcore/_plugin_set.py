"""What the core and plugins take of each other: interfaces, on which `plugins` is built. The core imports nothing of that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from logging import Logger
from typing import Any, Protocol

from .hooks import HookSpec


class AnyPlugin(Protocol):
    """A named unit of callbacks. It can be hashed, and is equal to itself alone."""

    name: str
    path: str | None
    config: Mapping[str, Any]
    log: Logger
    hooks: Mapping[str, Callable[..., Any]]
    _coroutine_hooks: frozenset[str]
    context_initialize: Callable[[Any], object] | None
    context_cleanup: Callable[[Any], object] | None

    def _call(self, name: str, *args: object) -> object:
        """Call a function of the plugin's life; what it raises becomes a PluginError."""

    def _acquire(self) -> None:
        """A dispatcher begins to use it. Raises PluginError when it has ended."""

    def _release(self) -> None:
        """A dispatcher has let go of it."""


class AnySnapshot(Protocol):
    """The plugins as they are at one moment, in order. Never changes."""

    @property
    def of_hook(self) -> Mapping[str, tuple[AnyPlugin, ...]]:
        """By hook, the plugins that are in its chain, in order."""

    def __iter__(self) -> Iterator[AnyPlugin]:
        """All of them."""


class AnyChange(Protocol):
    """A dispatcher that is ready for other plugins; neither method raises."""

    def commit(self) -> object:
        """Take them over."""

    def discard(self) -> object:
        """It was for nothing."""


class AnyDispatcher(Protocol):
    """What a set of plugins asks of its dispatchers. Other threads than theirs ask, too: there it neither waits nor fails."""

    def _prepare(self, plugins: Any, /) -> AnyChange:
        """Make ready for other plugins, a snapshot."""


class PluginSet(ABC):
    """The plugins of one or more dispatchers, which may change at any time, on any thread."""

    hooks: Mapping[str, HookSpec]

    @abstractmethod
    def _attach(self, dispatcher: AnyDispatcher) -> AbstractContextManager[AnySnapshot]:
        """For a dispatcher that is being made: the plugins that it takes, none of which ends within the block. From then on
        changes reach the dispatcher, by its `_prepare`, unless the block raises."""

    @abstractmethod
    def _detach(self, dispatcher: AnyDispatcher) -> None:
        """Changes reach the dispatcher no more."""

    @abstractmethod
    def _current(self) -> AbstractContextManager[AnySnapshot | None]:
        """The plugins as they are now, none of which ends within the block; None once they are closed."""
