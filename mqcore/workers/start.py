"""What a worker is given when it is started: by the environment, as its command line is that of the supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from ..mail.base import Source

VARIABLE = "_MQCORE_WORKER"
OF_SUPERVISOR = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""What the environment says to the supervisor alone."""


class Start(NamedTuple):
    """File descriptors, and what else a worker is to know."""

    channel: int
    page: int
    listeners: tuple[int, ...]
    url: str
    """Where they listen; empty for a source that does not."""
    slot: int
    generation: int
    """Of all workers of the run, from 1 on."""
    workers: int
    """How many slots there are."""
    seed: int
    """Of the digests of what is in hand."""
    after_crash: bool = False
    """Whether the one before it ended by itself."""
    suspects: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    paused: tuple[str, ...] = ()
    """Plugins."""
    maildirs: tuple[str, ...] = ()
    """Those whose lock the supervisor has."""

    @property
    def fds(self) -> list[int]:
        return [self.channel, self.page, *self.listeners]

    @property
    def writer(self) -> str:
        """Names the worker in names of files. Nobody can guess it."""
        return blake2b(f"{self.seed} {self.generation}".encode(), digest_size=8).hexdigest()

    def environment(self) -> dict[str, str]:
        """Of the worker."""
        kept = {name: value for name, value in os.environ.items() if name not in OF_SUPERVISOR}
        return kept | {VARIABLE: json.dumps(self._asdict())}

    @classmethod
    def take(cls) -> Self | None:
        """What this process was given; None if it is no worker. A second time there is nothing."""
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        given: dict[str, Any] = json.loads(text)
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        start = cls(**given)
        for fd in start.fds:
            os.set_inheritable(fd, False)
        return start


class Shared:
    """What a process that has no supervisor shares with others: nothing."""

    def of_source(self, kind: type[Source]) -> dict[str, Any]:
        """For the constructor of a source of this kind."""
        return {}

    def of_sink(self, path: str) -> dict[str, Any]:
        """For that of the sink, or of where failed mails go, at this path."""
        return {}


def spawn(start: Start, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """`mqcore` with these arguments, as a worker. Raises OSError."""
    # The same Python, and modules from where this process has them: the current folder only if that was so here.
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if getattr(sys.modules["__main__"], "__spec__", None) is None and "-P" not in options:
        options = [*options, "-P"]
    return subprocess.Popen(
        [sys.executable, *options, "-m", "mqcore", *arguments],
        env=start.environment(),
        pass_fds=start.fds,
        stdin=subprocess.DEVNULL,
    )
