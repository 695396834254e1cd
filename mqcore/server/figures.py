"""The figures of a running server, as plain data: from the books that are kept anyway, in a time that does not depend on how
many messages are held, nor on how many clients there are."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import platform
import resource
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..mail._histogram import Histogram
from ..mail.refusals import log as refusals_log
from ..stats import HOLD_TIMES, HookStats, Lag, Stats
from .server import Server

PORTION = 25
"""Rows that are written as JSON in one tick: a quarter of a millisecond."""
_PROC = Path("/proc/self")


class Figures:
    """Those of one server. What can be collected belongs to the thread of its loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._build = {
            "version": version("mqcore"),
            "python": platform.python_version(),
            "uvloop": version("uvloop"),
            "libuv": server.dispatcher.libuv or "",
        }
        self._boot = boot_time()

    def collect(self) -> dict[str, Any]:
        """All of them, as of now. `plugins` are `HookStats`, and beside them, in the same order, how long the oldest message is
        held, as far as that is known (see `Dispatcher.oldest_held`). Histograms have bounds, counts and the sum."""
        server = self._server
        gateway, dispatcher = server.gateway, server.dispatcher
        stats = dispatcher.stats()
        oldest = dispatcher.oldest_held() if stats.held else {}
        counts = gateway.report.counts
        return {
            "build": self._build,
            "process": process_figures(self._boot),
            "started": server.started,
            "source": server.source.url,
            "sink": server.sink.url,
            "ready": not server.draining,
            "paused": sorted(server.plugins.paused),
            "steps": step_figures(stats),
            "plugins": stats.hooks,
            "oldest": [oldest.get((row.plugin, row.hook)) for row in stats.hooks],
            "mails": counts.as_dict() | {"stored": counts.stored},
            "bytes": {"in": gateway.bytes_in, "out": gateway.bytes_out},
            "in_flight": gateway.in_flight,
            "in_flight_limit": gateway.max_in_flight,
            "message_memory": gateway.bytes + gateway.memory.used,
            "refusals": [[stage, code, count] for (stage, code), count in gateway.refusals.counts.items()],
            "commit_seconds": plain(gateway.commit_seconds),
            "group_mails": plain(gateway.group_mails),
            "reloads": {name: getattr(server.reloads, name) for name in _RELOADS},
            "loop": plain_lag(dispatcher.lag()),
            "log_suppressed": dict(suppressed_lines() + Counter({refusals_log.name: gateway.refusals.unlogged})),
            **_plain_places(server.source.figures()),
            **server.sink.figures(),
        }


_RELOADS = ("succeeded", "failed", "last")
"""Why one failed is not for everybody: that may quote the configuration."""
_STEPS = ("entered", "continued", "completed", "failed", "cancelled", "held", "running")


def step_figures(stats: Stats) -> dict[str, int]:
    return {name: getattr(stats, name) for name in _STEPS}


def plain(histogram: Histogram) -> dict[str, Any]:
    return {"bounds": histogram.bounds, "counts": histogram.counts, "sum": histogram.sum}


def suppressed_lines() -> Counter[str]:
    """By logger, what handlers that count it in `suppressed`, as the command's does, did not write."""
    found: Counter[str] = Counter()
    for handler in logging.getLogger().handlers:
        found.update(getattr(handler, "suppressed", {}))
    return found


def plain_lag(lag: Lag | None) -> dict[str, Any] | None:
    """None where no watchdog looks. Turns that were longer than all bounds count behind them."""
    if lag is None:
        return None
    bounded = [(bound, count) for bound, count in lag.buckets if bound != math.inf]
    counts = [count for _, count in bounded]
    return {
        "lag": {
            "bounds": [bound for bound, _ in bounded],
            "counts": [*counts, max(0, lag.turns - sum(counts))],
            "sum": lag.seconds,
        },
        "longest": lag.longest,
        "blocked": [[one.plugin or "", one.hook or "", one.times] for one in lag.blocked],
    }


def _plain_places(figures: dict[str, Any]) -> dict[str, Any]:
    if "smtp" in figures:
        smtp = figures["smtp"]
        figures["smtp"] = smtp | {"transactions": plain(smtp["transactions"])}
    return figures


async def encode(figures: dict[str, Any]) -> str:
    """The same as JSON, with names in place of columns. Of a plugin that held nothing there are no hold times. In portions, as
    there may be many plugins: the figures are those of one moment all the same."""
    rest = {name: value for name, value in figures.items() if name not in ("plugins", "oldest")}
    parts = [_as_json(rest | {"time": time.time(), "hold_times": HOLD_TIMES})[:-1], ',"plugins":[']
    rows = list(zip(figures["plugins"], figures["oldest"], strict=True))
    for start in range(0, len(rows), PORTION):
        await asyncio.sleep(0)
        parts.append("," if start else "")
        parts.append(_as_json([_named(row, oldest) for row, oldest in rows[start : start + PORTION]])[1:-1])
    parts.append("]}")
    return "".join(parts)


_as_json = json.JSONEncoder(separators=(",", ":")).encode


def _named(row: HookStats, oldest: float | None) -> dict[str, Any]:
    named = row._asdict()
    named["held_oldest"] = oldest
    if not row.holds:
        named["hold_times"] = None
    return named


def boot_time() -> float:
    """When the system began, in seconds since 1970; 0 where that cannot be known. /proc/stat has it too, but a service may not
    be let see it (ProcSubset=pid)."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return 0.0 if clock is None else time.time() - time.clock_gettime(clock)


def process_figures(boot: float) -> dict[str, float]:
    """By the names that Prometheus's client libraries give them; as many as the system tells."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"cpu_seconds_total": used.ru_utime + used.ru_stime}
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY:
        figures["max_fds"] = limit
    try:
        # The name of the program, in brackets, may have anything in it.
        fields = (_PROC / "stat").read_text().rpartition(")")[2].split()
        open_files = os.stat(_PROC / "fd").st_size  # since Linux 6.2; 0 before
    except OSError:
        return figures
    figures["threads"] = int(fields[17])
    figures["start_time_seconds"] = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    figures["virtual_memory_bytes"] = int(fields[20])
    figures["resident_memory_bytes"] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    if open_files:
        figures["open_fds"] = open_files
    return figures
