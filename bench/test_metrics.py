"""A scrape: the text of all figures, on the loop that moves the mail; and how long the loop is kept by whoever asks a server
that holds a million messages, over its sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from comparing import row_of
from prometheus_client import CollectorRegistry, generate_latest

import mqcore
from mqcore.cli.ctl import exchange
from mqcore.mail import Gateway
from mqcore.mail.null_sink import NullSink
from mqcore.mail.smtp.source import SmtpSource
from mqcore.prometheus import Collector
from mqcore.server import Server
from mqcore.server.control import Control
from mqcore.server.exposition import TEXT, Exposition, Labels, families
from mqcore.server.figures import Figures
from mqcore.server.http import HttpServer

GROUP = "metrics"
PLUGINS = 100
STAGES = ("connect", "mailfrom", "rcptto", "data", "message")
HELD = 100_000


class Plugin:
    """Five hooks, each of which holds what is its own, and passes all else on."""

    def __init__(self) -> None:
        self.context: Any = None
        for stage in STAGES:
            setattr(self, f"mq_smtp_in_{stage}", self._hook)

    def mq_context_initialize(self, context: Any) -> None:
        self.context = context

    def _hook(self, context: Any, message: Any, *arguments: Any) -> bool:
        return bool(message.payload == self.context.plugin.name)


@contextlib.contextmanager
def serving(plugins: int, held: int) -> Iterator[Server]:
    """A server whose loop does not run. One plugin in ten holds so many messages in all, and others are over."""
    loop = uvloop.new_event_loop()
    loaded = mqcore.Plugins()
    own = {f"{number:03}-plugin": Plugin() for number in range(plugins)}
    for name, plugin in own.items():
        loaded.add(name, plugin)

    async def make(dispatcher: Any) -> Server:
        return Server(Gateway(dispatcher, source, NullSink("")))

    with (
        contextlib.closing(SmtpSource("//127.0.0.1:0", hostname="mx.example.org")) as source,
        mqcore.Dispatcher(loaded, loop, hold_timeout=0) as dispatcher,
    ):
        server = loop.run_until_complete(make(dispatcher))
        names, kept = list(own)[::10], []
        for stage in STAGES:
            hook = dispatcher.hook(f"mq_smtp_in_{stage}")
            arguments = {"mailfrom": ("",), "rcptto": ("",), "data": (b"",)}.get(stage, ())
            over = [mqcore.Message(name) for name in names]
            hook.run_many(over, *arguments)
            for message in over:
                own[message.payload].context.continue_(message)
            loop.run_until_complete(asyncio.sleep(0.01))
            kept.append([mqcore.Message(names[number % len(names)]) for number in range(held // len(STAGES))])
            hook.run_many(kept[-1], *arguments)
        assert dispatcher.stats().held == held
        yield server
    loop.close()


@contextlib.contextmanager
def scraped(plugins: int, held: int) -> Iterator[dict[str, Callable[[], Any]]]:
    """By prometheus_client with a collector, and by the server's own writer."""
    with serving(plugins, held) as server:
        figures, labels, text = Figures(server), Labels(), Exposition(TEXT)
        registry = CollectorRegistry()
        registry.register(Collector(server.dispatcher))
        yield {
            "prometheus_client": lambda: generate_latest(registry),
            "mqcore": lambda: text.write(families(figures.collect(), labels)),
        }


@pytest.mark.parametrize(
    ("case", "plugins", "held"),
    [
        (f"a scrape, {PLUGINS} plugins, 5 hooks", PLUGINS, len(STAGES) * PLUGINS),
        (f"a scrape, 3 plugins, {HELD // 1000}k held", 3, HELD - HELD % len(STAGES)),
    ],
)
def test_a_scrape(against: Callable[..., None], case: str, plugins: int, held: int) -> None:
    with scraped(plugins, held) as contenders:
        against(GROUP, case, contenders, rounds=30, count=1)


# How long the loop is kept

Place = tuple[str, str]
"""The control socket, and where the metrics are."""


def ask_held(place: Place) -> None:
    assert exchange(place[0], {"command": "held"})["result"]["oldest"]


def ask_many_held(place: Place) -> None:
    assert len(exchange(place[0], {"command": "held", "limit": 10_000})["result"]["oldest"]) == 10_000


def ask_held_of_a_plugin(place: Place) -> None:
    assert exchange(place[0], {"command": "held", "plugin": "000-plugin"})["result"]["oldest"]


def ask_figures(place: Place) -> None:
    """As `mqcore top` does, each second."""
    assert exchange(place[0], {"command": "figures"})["ok"]


def scrape(place: Place) -> None:
    with urllib.request.urlopen(f"{place[1]}metrics") as answer:
        assert b"mqcore_steps_held" in answer.read()


def watch(place: Place) -> None:
    """What the status page does: the history, and two events."""
    with urllib.request.urlopen(f"{place[1]}events") as answer:
        assert sum(line == b"\n" for line in itertools.islice(answer, 7)) == 3


WAYS = {
    "ctl held": ask_held,
    "ctl held --limit 10000": ask_many_held,
    "ctl held --plugin": ask_held_of_a_plugin,
    "top's request": ask_figures,
    "a scrape, over HTTP": scrape,
    "the status page": watch,
}


async def longest_turn(server: Server, way: Callable[[Place], None]) -> float:
    """In ms of the loop's processor time, while somebody asks; who asks is in another thread."""
    loop = asyncio.get_running_loop()
    longest, before, done = 0, 0, False

    def turn() -> None:
        nonlocal longest, before
        now = time.thread_time_ns()
        longest, before = max(longest, now - before), now
        if not done:
            loop.call_soon(turn)

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/control.sock"
        async with Control(server, path), HttpServer(server, ("127.0.0.1", 0)) as http:
            place = path, http.url
            await asyncio.to_thread(way, place)  # what is made once is made
            http._fresh.clear()
            gc.collect()
            gc.disable()  # what it takes for so many objects is no loop's matter
            try:
                before = time.thread_time_ns()
                turn()
                await asyncio.to_thread(way, place)
            finally:
                done = True
                gc.enable()
    return longest / 1e6


@pytest.mark.parametrize(
    ("case", "plugins", "held", "ways"),
    [
        pytest.param("a million held", 10, 1_000_000, list(WAYS), marks=pytest.mark.large),
        ("100 plugins, 5 hooks", 100, 10_000, ["top's request", "the status page"]),
    ],
)
def test_how_long_the_loop_is_kept(
    benchmark: Any, report: Callable[..., None], case: str, plugins: int, held: int, ways: list[str], *, short: bool
) -> None:
    rounds = 3 if short else 7
    turns: dict[str, dict[str, list[float]]] = {name: {"few held": [], "mqcore": []} for name in ways}
    with serving(plugins, 10_000) as few, serving(plugins, held) as many:

        def measure() -> None:
            for name in ways:
                for contender, server in (("few held", few), ("mqcore", many)):
                    loop = server.dispatcher.loop
                    turns[name][contender].append(loop.run_until_complete(longest_turn(server, WAYS[name])))

        benchmark.group = GROUP
        benchmark.pedantic(measure, rounds=rounds)
    for name in ways:
        report(row_of(GROUP, f"{name}, {case}", turns[name], unit="ms"))
