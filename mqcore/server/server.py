"""One gateway that runs, and how it is steered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import Plugins
from ..mail._gateway import Gateway

log = logging.getLogger("mqcore.server")


class ReloadError(Exception):
    """What could not be reloaded, and why; all is as it was."""


@dataclass(frozen=True)
class Prepared:
    """What a part of a server made ready for a reload."""

    commit: Callable[[], object]
    """Put it in force. Nothing of it can fail."""
    changed: tuple[str, ...] = ()
    """What is another than before, for people."""
    unchanged: tuple[str, ...] = ()
    """What would have to be another, but cannot while it runs."""


@dataclass(frozen=True)
class Reloaded:
    """What a reload did."""

    plugins: tuple[str, ...]
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class Reloads:
    """How often it was reloaded."""

    succeeded: int = 0
    failed: int = 0
    last: float | None = None
    """When it last succeeded, in seconds since 1970."""
    error: str | None = None
    """Why the last one failed; None if it did not."""


@dataclass(eq=False)
class Server:
    """A gateway that runs, and what an operator may ask of it. All methods belong to the thread of its loop.

    A program of one's own makes one beside its gateway, and gives it to what shows or steers it. `parts` are asked at each
    reload, before the plugins, to make ready for what is new: each returns what puts it in force, or raises.
    """

    gateway: Gateway
    parts: list[Callable[[], Prepared]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    """In seconds since 1970."""
    draining: bool = field(default=False, init=False)
    """Whether it was told to take no more, by `drain`, `stop` or a signal."""
    reloads: Reloads = field(default_factory=Reloads, init=False)

    def __post_init__(self) -> None:
        self.dispatcher = self.gateway.dispatcher
        self.plugins: Plugins = self.dispatcher.plugins
        self.source = self.gateway.source
        self.sink = self.gateway.sink

    def status(self) -> dict[str, Any]:
        """How it is, in short, as plain data."""
        counts = self.gateway.report.counts
        return {
            "state": "draining" if self.draining or self.gateway.is_stopping else "running",
            "started": round(self.started, 3),
            "uptime": round(time.time() - self.started, 3),
            "source": self.source.url,
            "sink": self.sink.url,
            "plugins": [plugin.name for plugin in self.plugins],
            "steps": dict(self.dispatcher.counts()),
            "in_flight": self.gateway.in_flight,
            "mails": asdict(counts) | {"stored": counts.stored},
            "reloads": asdict(self.reloads),
        }
