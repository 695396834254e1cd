"""For prometheus_client: the figures of a dispatcher (`pip install 'mqcore[prometheus]'`).

    prometheus_client.REGISTRY.register(mqcore.prometheus.Collector(dispatcher))

Nothing is counted twice: a scrape reads the books that the dispatcher keeps anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector as _Collector

from . import Dispatcher, MqError
from .stats import HOLD_TIMES, HookStats, Stats

_ROW = ("plugin", "hook")
_BOUNDS = [*map(repr, HOLD_TIMES), "+Inf"]


class Collector(_Collector):
    """Steps, plugins and hooks of a dispatcher, by the names that `mqcore run --metrics` gives them. Any thread may collect;
    how old the oldest messages are is told on the dispatcher's own only. After `close()` the last figures stay."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._thread = threading.get_ident()

    def describe(self) -> list[Metric]:
        """Nothing: a dispatcher may get plugins later."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._dispatcher.stats()
        yield from _steps(stats)
        yield from _plugins(stats.hooks)
        yield self._oldest()

    def _oldest(self) -> Metric:
        family = GaugeMetricFamily(
            "mqcore_plugin_held_oldest_seconds", "How long the plugin holds the oldest message that it holds now.", labels=_ROW
        )
        try:
            for row, age in self._dispatcher.oldest_held().items():
                family.add_metric(row, age)
        except MqError:  # on another thread than the dispatcher's
            pass
        return family


def _steps(stats: Stats) -> Iterator[Metric]:
    yield CounterMetricFamily("mqcore_steps_entered", "Steps that began.", stats.entered)
    ended = CounterMetricFamily("mqcore_steps", "Steps that ended, by outcome.", labels=("outcome",))
    for outcome in ("continued", "completed", "failed", "cancelled"):
        ended.add_metric((outcome,), getattr(stats, outcome))
    yield ended
    yield GaugeMetricFamily("mqcore_steps_held", "Steps of messages that a plugin holds.", stats.held)
    yield GaugeMetricFamily("mqcore_steps_running", "Steps that are in a hook, or wait for a turn of the loop.", stats.running)


_COUNTERS = {
    "calls": ("calls", "Calls of the hook."),
    "holds": ("holds", "Messages that the plugin took control of."),
    "refused_give_backs": ("refused", "Times that the plugin gave back what it did not hold."),
    "hook_seconds": ("seconds", "Time in the hook: an estimate, as about one step in 256 is timed."),
}
_GAUGES = {
    "held": ("held", "Messages that the plugin holds now."),
    "hook_seconds_max": ("longest", "The longest call among those that were timed."),
}


def _plugins(rows: tuple[HookStats, ...]) -> Iterator[Metric]:
    for kind, table in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
        for name, (field, text) in table.items():
            family = kind(f"mqcore_plugin_{name}", text, labels=_ROW)
            for row in rows:
                family.add_metric(row[:2], getattr(row, field))
            yield family
    verdicts, reasons = (*_ROW, "verdict"), (*_ROW, "reason")
    give_backs = CounterMetricFamily("mqcore_plugin_give_backs", "Times that control was given back.", labels=verdicts)
    failures = CounterMetricFamily("mqcore_plugin_failures", "Steps that failed at this plugin.", labels=reasons)
    holds = HistogramMetricFamily("mqcore_plugin_hold_seconds", "How long holds took that are over.", labels=_ROW)
    for row in rows:
        for verdict, count in (("continue", row.continues), ("complete", row.completes), ("retry", row.retries)):
            give_backs.add_metric((*row[:2], verdict), count)
        others = {"timeout": row.timeouts, "abandoned": row.abandoned, "retry_limit": row.retry_limits}
        for reason, count in {"error": row.failures - sum(others.values()), **others}.items():
            failures.add_metric((*row[:2], reason), count)
        if row.holds:
            total, buckets = 0, []
            for bound, count in zip(_BOUNDS, row.hold_times, strict=True):
                total += count
                buckets.append((bound, float(total)))
            holds.add_metric(row[:2], buckets, row.held_seconds)
    yield from (give_backs, failures, holds)
