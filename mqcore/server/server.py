"""One gateway that runs, and how it is steered."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .. import MqError, Plugins
from ..mail._gateway import Gateway
from ..mail.base import Prepared, together
from ..mail.errors import SinkError, SourceError
from ..mail.refusals import quoted
from . import systemd
from .held import HeldMessages

log = logging.getLogger("mqcore.server")

OLDEST = 20
"""Held messages, in the log."""


class ReloadError(Exception):
    """Why nothing was reloaded; all is as it was, unless it says that a part is not."""


class Reloaded(NamedTuple):
    """What a reload did."""

    plugins: int
    seconds: float
    changed: tuple[str, ...]
    """Beside the plugins: options, and the certificate."""
    needs_restart: tuple[str, ...]
    """Options that are others by now, and are as they were until the next start."""

    def __str__(self) -> str:
        text = f"reloaded {self.plugins} plugin{'' if self.plugins == 1 else 's'} in {self.seconds * 1e3:.0f} ms"
        if self.changed:
            text += f"; changed: {', '.join(self.changed)}"
        if self.needs_restart:
            text += f"; as before until the next start: {', '.join(self.needs_restart)}"
        return text


@dataclass(slots=True)
class Reloads:
    """How often it was reloaded, and told to."""

    succeeded: int = 0
    failed: int = 0
    last: float | None = None
    """When it last succeeded, in seconds since 1970."""
    error: str | None = None
    """Why the last one failed; None if it did not."""


class Server:
    """A gateway that runs, and what an operator may ask of it. All of it belongs to the thread of its loop.

    A program of one's own makes one beside its gateway, and gives it to what shows or steers it. At a reload the `parts` are
    asked first to make ready for what is new; nothing is put in force before all of them, and the plugins, are ready.
    """

    def __init__(self, gateway: Gateway, parts: Iterable[Callable[[], Prepared]] = (), started: float | None = None) -> None:
        self.gateway = gateway
        self.parts = list(parts)
        self.started = time.time() if started is None else started
        """In seconds since 1970."""
        self.reloads = Reloads()
        self.dispatcher = gateway.dispatcher
        self.plugins: Plugins = self.dispatcher.plugins
        self.source = gateway.source
        self.sink = gateway.sink
        self.held = HeldMessages(self.dispatcher)

    @property
    def draining(self) -> bool:
        """Whether no more is taken, as it was told to drain or to stop."""
        return self.gateway.is_draining

    def status(self) -> dict[str, Any]:
        """How it is, in short, as plain data."""
        counts = self.gateway.report.counts
        return {
            "state": "stopping" if self.gateway.is_stopping else "draining" if self.draining else "running",
            "started": round(self.started, 3),
            "uptime": round(time.time() - self.started, 3),
            "source": self.source.url,
            "sink": self.sink.url,
            "plugins": [plugin.name for plugin in self.plugins],
            "paused": sorted(self.plugins.paused),
            "steps": dict(self.dispatcher.counts()),
            "in_flight": self.gateway.in_flight,
            "in_flight_limit": self.gateway.max_in_flight,
            "mails": counts.as_dict() | {"stored": counts.stored},
            "reloads": asdict(self.reloads),
        }

    def reload(self) -> Reloaded:
        """Read plugins, configuration and certificates again. Steps and connections that are there go on as they began. Raises
        ReloadError, when all stays as it was."""
        with systemd.reloading():
            done: Reloaded = self.dispatcher._run_reload(self._reload)
            return done

    def _reload(self) -> Reloaded:
        begin = time.perf_counter()
        try:
            prepared = [part() for part in self.parts]
            self.plugins._reload(together(prepared).check)
        except Exception as error:
            expected = isinstance(error, (MqError, SourceError, SinkError, ValueError))
            text = str(error) if expected else f"{type(error).__name__}: {error}"
            log.error("not reloaded, all stays as it was: %s", text, exc_info=None if expected else error)
            raise self._failed(text) from error
        if (broken := _commit(prepared)) is not None:
            text = f"reloaded, but for a part that failed, so start the server anew: {type(broken).__name__}: {broken}"
            log.critical("%s", text, exc_info=broken)
            raise self._failed(text) from broken
        self.reloads.succeeded += 1
        self.reloads.last = time.time()
        self.reloads.error = None
        done = Reloaded(
            len(self.plugins),
            round(time.perf_counter() - begin, 6),
            tuple(name for each in prepared for name in each.changed),
            tuple(name for each in prepared for name in each.needs_restart),
        )
        log.log(logging.WARNING if done.needs_restart else logging.INFO, "%s", done)
        return done

    def _failed(self, why: str) -> ReloadError:
        self.reloads.failed += 1
        self.reloads.error = why
        return ReloadError(why)

    def pause(self, plugin: str) -> None:
        """Leave a plugin out of what begins from now on; what it holds it finishes. Raises PluginError if there is none."""
        self.plugins.pause(plugin)
        log.info("plugin %s is paused", plugin)

    def resume(self, plugin: str) -> None:
        """End what `pause` began."""
        self.plugins.resume(plugin)
        log.info("plugin %s goes on", plugin)

    def drain(self, timeout: float | None = None) -> None:
        """Take no new connections and mails, and end when what is open is over; after `timeout` seconds in any case."""
        log.info("draining%s", "" if timeout is None else f", for {timeout:g} s at most")
        systemd.notify(f"STATUS=draining {self.source.url}")  # not STOPPING: from that on systemd counts the time
        self.gateway.drain(timeout, signal.SIGTERM)

    def stop(self) -> None:
        """The same in a hurry, as SIGTERM does it."""
        log.info("stopping when %s", self.gateway.ends_when)
        systemd.notify("STOPPING=1", f"STATUS=stopping {self.source.url}")
        self.gateway.stop(signal.SIGTERM)

    def log_status(self) -> None:
        """Write the status and what is held for longest to the log, whatever its level: somebody asked for it."""
        status = self.status()
        lines = [f"{name}: {_plain(value)}" for name, value in status.items()]
        for held in map(self.held.describe, self.dispatcher.held(OLDEST)):
            lines.append(f"held: {_plain(held)}")
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "status\n%s", ("\n".join(lines),), None))


def _commit(prepared: list[Prepared]) -> Exception | None:
    """Put all of it in force. The plugins are in force already, so where one breaks its promise not to fail, the others are put
    in force all the same. The last error."""
    broken: Exception | None = None
    for each in prepared:
        try:
            each.commit()
        except Exception as error:
            broken = error
    return broken


def _plain(value: object) -> str:
    if isinstance(value, dict):
        known = {name: each for name, each in value.items() if each is not None}  # a client's, some of it
        return " ".join(f"{name}={quoted(each) if isinstance(each, str) else each}" for name, each in known.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
