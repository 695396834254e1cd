"""For prometheus_client: the figures of a dispatcher (`pip install 'mqcore[prometheus]'`).

    prometheus_client.REGISTRY.register(mqcore.prometheus.Collector(dispatcher))

Nothing is counted twice: a scrape reads the books that the dispatcher keeps anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector as _Collector

from . import Dispatcher, MqError
from .server.exposition import OPENMETRICS, Exposition, Labels, plugin_families, step_families
from .server.figures import step_figures


class Collector(_Collector):
    """Steps, plugins and hooks of a dispatcher, as `mqcore run --metrics` tells of them. Any thread may collect; how old the
    oldest messages are is told on the dispatcher's own only. After `close()` the last figures stay."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def describe(self) -> list[Metric]:
        """Nothing: a dispatcher may get plugins later."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._dispatcher.stats()
        try:
            oldest = self._dispatcher.oldest_held()
        except MqError:  # on another thread than the dispatcher's
            oldest = {}
        ages = [oldest.get((row.plugin, row.hook)) for row in stats.hooks]
        families = [*step_families(step_figures(stats)), *plugin_families(stats.hooks, ages, Labels())]
        # What they are is written in one place; prometheus_client reads it as it reads any server's.
        text = Exposition(OPENMETRICS).write(families).decode()
        yield from text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for family in families:
            if not family.labels:
                yield Metric(family.name, family.help, family.kind)
