"""What an operator can tell a supervisor: it asks its workers, and puts their answers together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..server.commands import LOOK_EVERY, CommandError
from ..server.durations import parse_duration
from ..server.server import ReloadError
from .merged import merge
from .process import State, Worker
from .supervisor import Supervisor

NOBODY = "there is no worker now that could answer; try again"
FEWEST_HELD = 100
"""That `held` tells of if nobody says how many."""


class WorkersCommands:
    """Those of one run."""

    def __init__(self, supervisor: Supervisor, source: str, sink: str) -> None:
        self._supervisor = supervisor
        self._about = {"source": source, "sink": sink}

    async def run(self, request: object, is_gone: Callable[[], bool] = lambda: False) -> object:
        """As `Commands.run`. Whatever is wrong with a request, a worker says."""
        name = request.get("command") if isinstance(request, dict) else None
        if not isinstance(request, dict) or not isinstance(name, str):
            raise CommandError('a request is an object with a "command"', "usage")
        match name:
            case "reload":
                return await self._reload()
            case "drain" | "stop":
                return self._end(name, request)
            case "trace":
                return await self._trace(request, is_gone)
            case "order":
                return await self._ask_newest(request)
        results = await self._ask(request)
        match name:
            case "status":
                return self._status(results)
            case "figures":
                return self.together(results)
            case "held":
                oldest = sorted((row for each in results for row in each["oldest"]), key=lambda row: -float(row["age"]))
                return {"held": sum(each["held"] for each in results), "oldest": oldest[: request.get("limit", FEWEST_HELD)]}
            case "pause" | "resume":
                (self._supervisor.paused.add if name == "pause" else self._supervisor.paused.discard)(request["plugin"])
                return results[0]
        return merge(results)

    async def figures(self) -> list[tuple[Worker, dict[str, Any]]]:
        """Of each worker that serves."""
        workers = self._serving()
        answers = await asyncio.gather(*(one.ask({"command": "figures"}) for one in workers), return_exceptions=True)
        return [
            (worker, answer["result"])
            for worker, answer in zip(workers, answers, strict=True)
            if not isinstance(answer, BaseException) and answer["ok"]
        ]

    def together(self, figures: list[dict[str, Any]]) -> dict[str, Any]:
        """As one process would tell of itself; what workers that are gone did is in it."""
        report = self._supervisor.report()
        refusals = [[stage, code, number] for (stage, code), number in report.refusals.items()]
        reloads = asdict(self._supervisor.reloads)
        del reloads["error"]
        return merge(figures) | {
            "hold_times": figures[0]["hold_times"],  # bounds, the same in all
            "mails": report.counts.as_dict() | {"stored": report.counts.stored},
            "refusals": refusals,
            "reloads": reloads,
            "in_flight_limit": self._supervisor.in_flight * len(self._supervisor.slots),
            "started": self._supervisor.started,
            "ready": not (self._supervisor.is_stopping or self._supervisor.is_draining),
        }

    # Asking

    def _serving(self) -> list[Worker]:
        return sorted(
            (one for one in self._supervisor.alive if one.state in (State.READY, State.STOPPING)),
            key=lambda one: one.start.generation,
        )

    async def _ask_newest(self, request: dict[str, Any]) -> dict[str, Any]:
        """The result of one, which is what all would say. Raises CommandError."""
        for worker in sorted(self._serving(), key=lambda one: (one.state is State.READY, one.start.generation), reverse=True):
            with contextlib.suppress(ConnectionResetError):
                answer = await worker.ask(request)
                if answer["ok"]:
                    result: dict[str, Any] = answer["result"]
                    return result
                raise CommandError(answer["error"], answer["kind"])
        raise CommandError(NOBODY)

    async def _ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The results of those that do it. Raises CommandError if none does."""
        workers = self._serving()
        answers = await asyncio.gather(*(one.ask(request) for one in workers), return_exceptions=True)
        told = [answer for answer in answers if not isinstance(answer, BaseException)]
        results: list[dict[str, Any]] = [answer["result"] for answer in told if answer["ok"]]
        if results:
            return results
        if told:
            raise CommandError(told[0]["error"], told[0]["kind"])
        raise CommandError(NOBODY)

    def _status(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        supervisor = self._supervisor
        report = supervisor.report()
        is_stopping, is_draining = supervisor.is_stopping, supervisor.is_draining
        merged = merge(results)
        return merged | {
            "state": "stopping" if is_stopping else "draining" if is_draining else "running",
            "started": round(supervisor.started, 3),
            "uptime": round(report.seconds, 3),
            "mails": report.counts.as_dict() | {"stored": report.counts.stored},
            "in_flight_limit": supervisor.in_flight * len(supervisor.slots),
            "workers": len(supervisor.slots),
            "processes": [f"{one.start.slot}: {one.pid} {one.state.value}" for one in self._serving()],
            "crashes": report.crashes,
            "restarts": report.restarts,
            "reloads": asdict(supervisor.reloads),
            **self._about,
        }

    # Steering

    async def _reload(self) -> dict[str, Any]:
        begin = asyncio.get_running_loop().time()
        try:
            await self._supervisor.reload()
        except ReloadError as error:
            raise CommandError(str(error), "reload") from error
        plugins = (await self._ask_newest({"command": "status"}))["plugins"]
        seconds = round(asyncio.get_running_loop().time() - begin, 6)
        return {"plugins": len(plugins), "seconds": seconds, "changed": [], "needs_restart": []}

    def _end(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        timeout = request.get("timeout")
        try:
            seconds = parse_duration(timeout) if isinstance(timeout, str) else timeout
        except ValueError as error:
            raise CommandError(f"timeout of {name} is wrong: {error}", "usage") from error
        counts = self._supervisor.report().counts
        if name == "stop":
            self._supervisor.stop()
        else:
            self._supervisor.drain(seconds)
        return {"in_flight": max(0, counts.read - counts.settled)}

    async def _trace(self, request: dict[str, Any], is_gone: Callable[[], bool]) -> object:
        """All look for it, and the first that finds it answers."""
        loop = asyncio.get_running_loop()
        asking = {loop.create_task(one.ask(request)) for one in self._serving()}
        try:
            while asking:
                done, asking = await asyncio.wait(asking, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        answer = task.result()
                        if answer["ok"]:
                            return answer["result"]
                        raise CommandError(answer["error"], answer["kind"])
                if is_gone():
                    break
        finally:
            for task in asking:
                task.cancel()
        raise CommandError(NOBODY)
