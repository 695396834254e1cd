"""What an operator can tell a running server, by name and with named arguments: the requests of the control socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from .. import MqError
from .durations import LONGEST, parse_duration
from .figures import Figures, encode
from .held import FEW
from .server import ReloadError, Server
from .timeline import NextTransaction, as_address

MOST_HELD = 10_000
"""That `held` tells of at once."""
LONGEST_TEXT = 1000
LOOK_EVERY = 1.0
"""Seconds, whether somebody waits yet for what may take long."""


class CommandError(Exception):
    """Why a command was not carried out. `kind`: `usage` for a request that makes no sense, `reload`, else `failed`."""

    def __init__(self, text: str, kind: str = "failed") -> None:
        super().__init__(text)
        self.kind = kind


class Encoded(list[str]):
    """A result that is JSON already: the parts of its text."""


def _as_text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TEXT:
        raise ValueError(f"a text of 1 to {LONGEST_TEXT} characters")
    return value


def _as_count(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_HELD:
        raise ValueError(f"a whole number from 1 to {MOST_HELD}")
    return value


def _as_seconds(value: object) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if type(value) not in (int, float) or not 0 <= value <= LONGEST:  # type: ignore[operator]
        raise ValueError("a number of seconds, or a text such as 500ms, 10s or 5m")
    return float(value)  # type: ignore[arg-type]


def _as_peer(value: object) -> str:
    try:
        return as_address(_as_text(value))
    except ValueError:
        raise ValueError("an IP address, as 192.0.2.7 or 2001:db8::7") from None


class _Command(NamedTuple):
    call: Callable[..., Awaitable[object]]
    needed: Mapping[str, Callable[[object], Any]]
    possible: Mapping[str, Callable[[object], Any]]
    waits: bool = False
    """For as long as whoever asked is there."""


class Commands:
    """Those of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._held = server.held
        self._figures = Figures(server)
        self._known = {
            "status": _Command(self._status, {}, {}),
            "stats": _Command(self._stats, {}, {}),
            "figures": _Command(self._collect, {}, {}),
            "order": _Command(self._order, {"hook": _as_text}, {}),
            "held": _Command(self._list_held, {}, {"limit": _as_count, "plugin": _as_text, "older": _as_seconds}),
            "cancel": _Command(self._cancel, {}, {"id": _as_text, "plugin": _as_text, "older": _as_seconds}),
            "reload": _Command(self._reload, {}, {}),
            "drain": _Command(self._drain, {}, {"timeout": _as_seconds}),
            "stop": _Command(self._stop, {}, {}),
            "pause": _Command(self._pause, {"plugin": _as_text}, {}),
            "resume": _Command(self._resume, {"plugin": _as_text}, {}),
            "trace": _Command(self._trace, {}, {"id": _as_text, "peer": _as_peer}, waits=True),
        }

    async def run(self, request: object, is_gone: Callable[[], bool] = lambda: False) -> object:
        """Carry out `{"command": NAME, ...}`, and return what there is to tell. Raises CommandError. `is_gone`: whether nobody
        waits for it any more."""
        if not isinstance(request, dict) or not isinstance(name := request.pop("command", None), str):
            raise CommandError('a request is an object with a "command"', "usage")
        if (command := self._known.get(name)) is None:
            raise CommandError(f"no command is named {name[:40]!r}; there are {', '.join(self._known)}", "usage")
        arguments: dict[str, Any] = {}
        for key, value in request.items():
            if (convert := command.needed.get(key) or command.possible.get(key)) is None:
                allowed = ", ".join((*command.needed, *command.possible)) or "nothing else"
                raise CommandError(f"{name} does not take {key[:40]!r}; it takes {allowed}", "usage")
            try:
                arguments[key] = convert(value)
            except ValueError as error:
                raise CommandError(f"{key} of {name} is wrong: {error}", "usage") from error
        for key in command.needed:
            if key not in arguments:
                raise CommandError(f"{name} needs {key!r}", "usage")
        try:
            answering = command.call(**arguments)
            return await (_unless(is_gone, answering) if command.waits else answering)
        except ReloadError as error:
            raise CommandError(str(error), "reload") from error
        except MqError as error:  # there is no such plugin or hook
            raise CommandError(str(error)) from error

    async def _status(self) -> object:
        return self._server.status()

    async def _stats(self) -> object:
        stats = self._server.dispatcher.stats()
        return {"steps": dict(self._server.dispatcher.counts()), "plugins": [row._asdict() for row in stats.hooks]}

    async def _collect(self) -> object:
        return Encoded([await encode(self._figures.collect())])

    async def _order(self, hook: str) -> object:
        plugins = self._server.plugins
        paused = [plugin.name for plugin in plugins if hook in plugin.hooks and plugin.name in plugins.paused]
        return {"order": plugins.order(hook), "paused": paused}

    async def _list_held(self, limit: int = 100, plugin: str | None = None, older: float = 0.0) -> object:
        self._check_plugin(plugin)
        found = await self._held.oldest(limit, plugin, older)
        parts = Encoded([f'{{"held": {self._server.dispatcher.counts()["held"]}, "oldest": ['])
        while found:  # in portions, as there may be many; they take their time to be freed, too
            parts.append(json.dumps([self._held.describe(held) for held in found[:FEW]])[1:-1])
            del found[:FEW]
            if found:
                await asyncio.sleep(0)
                parts.append(", ")
        parts.append("]}")
        return parts

    async def _cancel(self, id: str | None = None, plugin: str | None = None, older: float | None = None) -> object:
        if (id is None) == (plugin is None) or (id is not None and older is not None):
            raise CommandError("cancel needs either the id of a message, or a plugin and perhaps older", "usage")
        self._check_plugin(plugin)
        if plugin is not None:
            return {"cancelled": await self._held.cancel_of(plugin, older or 0.0)}
        count = await self._held.cancel(str(id))
        if not count:
            raise CommandError(f"no message with the id {id} is held")
        return {"cancelled": count}

    def _check_plugin(self, name: str | None) -> None:
        """It may be one that was removed, and holds messages yet."""
        if name is not None and not any(row.plugin == name for row in self._server.dispatcher.stats().hooks):
            self._server.plugins._named(name)

    async def _reload(self) -> object:
        return self._server.reload()._asdict()

    async def _drain(self, timeout: float | None = None) -> object:  # noqa: ASYNC109 - it is the server's
        self._server.drain(timeout)
        return {"in_flight": self._server.gateway.in_flight}

    async def _stop(self) -> object:
        self._server.stop()
        return {"in_flight": self._server.gateway.in_flight}

    async def _trace(self, id: str | None = None, peer: str | None = None) -> object:
        if (id is None) == (peer is None):
            raise CommandError("trace needs either an id or a peer", "usage")
        waiting = NextTransaction(self._server.gateway, id, peer)
        try:
            return (await waiting.ended_with).as_dict()
        finally:
            waiting.give_up()

    async def _pause(self, plugin: str) -> object:
        self._server.pause(plugin)
        return {"paused": sorted(self._server.plugins.paused)}

    async def _resume(self, plugin: str) -> object:
        self._server.resume(plugin)
        return {"paused": sorted(self._server.plugins.paused)}


async def _unless(is_gone: Callable[[], bool], answering: Awaitable[object]) -> object:
    """The answer, unless nobody waits for it any more."""
    task = asyncio.ensure_future(answering)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_EVERY))[0]:
            if is_gone():
                raise CommandError("nobody waits for it any more")
        return task.result()
    finally:
        task.cancel()
