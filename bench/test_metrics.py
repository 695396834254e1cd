"""A scrape: the text of all figures, on the loop that moves the mail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from prometheus_client import CollectorRegistry, generate_latest

import mqcore
from mqcore.mail import Gateway
from mqcore.mail.null_sink import NullSink
from mqcore.mail.smtp.source import SmtpSource
from mqcore.prometheus import Collector
from mqcore.server import Server
from mqcore.server.exposition import TEXT, Exposition, Labels, families
from mqcore.server.figures import Figures

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
def scraped(plugins: int, held: int) -> Iterator[dict[str, Callable[[], Any]]]:
    """By prometheus_client with a collector, and by the server's own writer. One plugin in ten holds so many messages in all,
    and others are over."""
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
        figures, labels, text = Figures(server), Labels(), Exposition(TEXT)
        registry = CollectorRegistry()
        registry.register(Collector(dispatcher))
        yield {
            "prometheus_client": lambda: generate_latest(registry),
            "mqcore": lambda: text.write(families(figures.collect(), labels)),
        }
    loop.close()


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
