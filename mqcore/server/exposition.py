"""The figures of a server as text for Prometheus: the text format 0.0.4, and OpenMetrics 1.0.

A scrape of a server with many plugins is thousands of lines, on the loop that moves the mail. So the text of a family, with
its labels, is made once and kept; a scrape fills in the numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from ..stats import HOLD_TIMES, HookStats
from ._template import Template

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Row = tuple[str, float]
"""Labels as they are written, and a number."""


class Family(NamedTuple):
    """One metric: `name` without the suffix of a counter, and for each series labels as they are written, and a number.

    A histogram has the parts of each series in `labels`, with their suffixes."""

    name: str
    kind: str
    help: str
    labels: Sequence[str]
    numbers: Sequence[float]


class Exposition:
    """Writes families in one of the two formats."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        self._is_open = content_type == OPENMETRICS
        self._templates: dict[str, tuple[Sequence[str], Template]] = {}

    def write(self, families: Iterable[Family]) -> bytes:
        parts = [self._template_of(family).fill(family.numbers) for family in families if family.labels]
        if self._is_open:
            parts.append(b"# EOF\n")
        return b"".join(parts)

    def _template_of(self, family: Family) -> Template:
        known = self._templates.get(family.name)
        if known is None or known[0] != family.labels:
            known = family.labels, self._make(family)
            self._templates[family.name] = known
        return known[1]

    def _make(self, family: Family) -> Template:
        name = family.name
        suffix = "_total" if family.kind == "counter" else ""
        shown = name if self._is_open else name + suffix
        pieces = [f"{name}{suffix}{written} " for written in family.labels]
        pieces[0] = f"# HELP {shown} {family.help}\n# TYPE {shown} {family.kind}\n{pieces[0]}"
        return Template(pieces)


def choose(accept: str) -> str:
    """The content type for the value of an Accept header: OpenMetrics where it is liked at least as much as text."""
    best = {"openmetrics": 0.0, "text": 0.0}
    for one in accept.split(","):
        media, *parameters = (part.strip().lower() for part in one.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        quality = _quality(given.get("q", "1"))
        if media == "application/openmetrics-text" and given.get("version", "1.0.0") in ("1.0.0", "0.0.1"):
            best["openmetrics"] = max(best["openmetrics"], quality)
        elif media in ("text/plain", "text/*", "*/*"):
            best["text"] = max(best["text"], quality)
    return OPENMETRICS if best["openmetrics"] > 0 and best["openmetrics"] >= best["text"] else TEXT


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.[0-9]{0,3})?", text) else 0.0


# ------------------------------------------------------------------------------------------------------------------ Labels


def label(**labels: object) -> str:
    """As they are written; what has a name of a keyword has an underscore behind it."""
    return "{" + ",".join(f'{name.rstrip("_")}="{_escape(str(value))}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    # A name may have bytes that are no UTF-8, which no text can have.
    value = value.encode(errors="replace").decode()
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# ---------------------------------------------------------------------------------------------------------------- Families


def families(figures: Mapping[str, Any], labels: Labels) -> list[Family]:
    """Those of what `Figures.collect` returned."""
    return [
        *_process(figures),
        *step_families(figures["steps"]),
        *plugin_families(figures["plugins"], figures["oldest"], labels),
        *_mails(figures),
        *_smtp(figures),
        *_milter(figures),
        *_sinks(figures),
        *_amqp(figures),
        *_loop(figures["loop"], figures["plugins"], labels),
        *_server(figures),
    ]


def _one(name: str, kind: str, help_: str, number: float | None, written: str = "") -> Family:
    return Family(name, kind, help_, [] if number is None else [written], [] if number is None else [number])


def _many(name: str, kind: str, help_: str, rows: Iterable[Row]) -> Family:
    rows = list(rows)
    return Family(name, kind, help_, [written for written, _ in rows], [number for _, number in rows])


def _by(name: str, kind: str, help_: str, key: str, numbers: Mapping[str, float]) -> Family:
    return _many(name, kind, help_, ((label(**{key: one}), number) for one, number in numbers.items()))


def _histogram(name: str, help_: str, histogram: Mapping[str, Any]) -> Family:
    bounds = [*map(repr, map(float, histogram["bounds"])), "+Inf"]
    cumulative = list(accumulate(histogram["counts"]))
    written = [f'_bucket{{le="{bound}"}}' for bound in bounds]
    return Family(name, "histogram", help_, [*written, "_sum", "_count"], [*cumulative, histogram["sum"], cumulative[-1]])


_PROCESS = {
    "cpu_seconds_total": "Total user and system CPU time spent in seconds.",
    "open_fds": "Number of open file descriptors.",
    "max_fds": "Maximum number of open file descriptors.",
    "virtual_memory_bytes": "Virtual memory size in bytes.",
    "resident_memory_bytes": "Resident memory size in bytes.",
    "start_time_seconds": "Start time of the process since unix epoch in seconds.",
    "threads": "Number of OS threads in the process.",
}


def _process(figures: Mapping[str, Any]) -> list[Family]:
    found = [_one("mqcore_build_info", "gauge", "What runs: always 1.", 1, label(**figures["build"]))]
    for name, help_ in _PROCESS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        found.append(_one(f"process_{name.removesuffix('_total')}", kind, help_, figures["process"].get(name)))
    return found


def step_families(steps: Mapping[str, int]) -> list[Family]:
    """Those of what `step_figures` returned."""
    outcomes = {name: steps[name] for name in ("continued", "completed", "failed", "cancelled")}
    return [
        _one(
            "mqcore_steps_entered",
            "counter",
            "Steps that began. Always the sum of mqcore_steps_total, mqcore_steps_held and mqcore_steps_running.",
            steps["entered"],
        ),
        _by("mqcore_steps", "counter", "Steps that ended, by outcome.", "outcome", outcomes),
        _one("mqcore_steps_held", "gauge", "Steps of messages that a plugin holds.", steps["held"]),
        _one("mqcore_steps_running", "gauge", "Steps that are in a hook, or wait for a turn of the loop.", steps["running"]),
    ]


NO_PLUGINS = (("", "done"), ("", "reload"), ("", ""))
"""Who else may keep the loop: see `mqcore.stats.Blocked`."""


class Labels:
    """Those of plugins and hooks, made once for each. `callers`: of all that may keep the loop."""

    def __init__(self) -> None:
        self._keys: list[tuple[str, str]] = []
        self.callers: dict[tuple[str, str], str] = {}
        self.rows: list[str] = []
        self.verdicts: list[str] = []
        self.reasons: list[str] = []
        self._buckets: dict[str, list[str]] = {}

    def take(self, stats: Sequence[HookStats]) -> None:
        keys = [row[:2] for row in stats]
        if keys != self._keys or not self.callers:
            self._keys = keys
            self.rows = [label(plugin=plugin, hook=hook) for plugin, hook in keys]
            callbacks = [(plugin, "") for plugin, _ in keys]
            self.callers = {key: label(plugin=key[0], hook=key[1]) for key in (*keys, *callbacks, *NO_PLUGINS)}
            self.verdicts = self._with("verdict", ("continue", "complete", "retry"))
            self.reasons = self._with("reason", ("error", "timeout", "abandoned", "retry_limit"))
            self._buckets = {}

    def _with(self, name: str, values: Sequence[str]) -> list[str]:
        return [label(plugin=plugin, hook=hook, **{name: value}) for value in values for plugin, hook in self._keys]

    def buckets_of(self, row: str) -> list[str]:
        """The parts of one histogram."""
        if (found := self._buckets.get(row)) is None:
            bounds = [*map(repr, HOLD_TIMES), "+Inf"]
            found = [f'_bucket{row[:-1]},le="{bound}"}}' for bound in bounds] + [f"_sum{row}", f"_count{row}"]
            self._buckets[row] = found
        return found


def plugin_families(stats: Sequence[HookStats], oldest: Sequence[float | None], labels: Labels) -> list[Family]:
    """Those with a series for each plugin and hook. Each hold is in the histogram when it is over."""
    if not stats:
        return []
    labels.take(stats)
    rows = labels.rows
    columns: Any = HookStats._make(zip(*stats, strict=True))
    others = (columns.timeouts, columns.abandoned, columns.retry_limits)
    errors = [all_ - sum(rest) for all_, *rest in zip(columns.failures, *others, strict=True)]
    known = [(row, age) for row, age in zip(rows, oldest, strict=True) if age is not None]
    parts: list[str] = []
    numbers: list[float] = []
    for row, count, times, sum_ in zip(rows, columns.holds, columns.hold_times, columns.held_seconds, strict=True):
        if count:
            cumulative = list(accumulate(times))
            parts += labels.buckets_of(row)
            numbers += cumulative
            numbers += sum_, cumulative[-1]
    return [
        Family("mqcore_plugin_calls", "counter", "Calls of the hook.", rows, columns.calls),
        Family("mqcore_plugin_holds", "counter", "Messages that the plugin took control of.", rows, columns.holds),
        Family(
            "mqcore_plugin_give_backs",
            "counter",
            "Times that the plugin gave control back, by what is to follow.",
            labels.verdicts,
            columns.continues + columns.completes + columns.retries,
        ),
        Family(
            "mqcore_plugin_failures",
            "counter",
            "Steps that failed at this plugin, by why.",
            labels.reasons,
            (*errors, *columns.timeouts, *columns.abandoned, *columns.retry_limits),
        ),
        Family(
            "mqcore_plugin_refused_give_backs",
            "counter",
            "Times that the plugin gave back what it did not hold. The hook is empty where the message had been in no step.",
            rows,
            columns.refused,
        ),
        Family(
            "mqcore_plugin_hook_seconds",
            "counter",
            "Time in the hook: an estimate, as about one step in 256 is timed.",
            rows,
            columns.seconds,
        ),
        Family(
            "mqcore_plugin_hook_seconds_max", "gauge", "The longest call among those that were timed.", rows, columns.longest
        ),
        Family("mqcore_plugin_held", "gauge", "Messages that the plugin holds now.", rows, columns.held),
        _many(
            "mqcore_plugin_held_oldest_seconds",
            "gauge",
            "How long the plugin holds the oldest message that it holds now. Left out where it holds none, and where none of "
            "them is among the 1,000 oldest of all.",
            known,
        ),
        Family("mqcore_plugin_hold_seconds", "histogram", "How long holds took that are over.", parts, numbers),
    ]


_RESULTS = {
    "present": "present",
    "continued": "stored",
    "completed": "stored_early",
    "failed": "failed",
    "rejected": "rejected",
    "discarded": "discarded",
    "retried": "retried",
    "unfinished": "unfinished",
}


def _mails(figures: Mapping[str, Any]) -> list[Family]:
    mails = figures["mails"]
    results = {result: mails[name] for name, result in _RESULTS.items()}
    return [
        _one("mqcore_mails_read", "counter", "Mails that came, one for each recipient.", mails["read"]),
        _by(
            "mqcore_mails",
            "counter",
            "Mails by what became of them. stored_early: after a plugin that skipped those after it. present: in the sink "
            "already, from an earlier run. retried: put back into their queue, for later. unfinished: given up, the "
            "source still has them.",
            "result",
            results,
        ),
        _one("mqcore_mails_unanswered", "counter", "Stored mails whose client left before it was told.", mails["unanswered"]),
        _one("mqcore_mails_in_doubt", "counter", "Mails that may be with the next server twice.", mails["in_doubt"]),
        _one("mqcore_mails_in_clear", "counter", "Mails sent in the clear, as STARTTLS fails there.", mails["in_clear"]),
        _by("mqcore_mail_bytes", "counter", "Octets that came in, and that the sink took.", "direction", figures["bytes"]),
        _one("mqcore_in_flight", "gauge", "Mails that are with plugins or the sink.", figures["in_flight"]),
        _one("mqcore_in_flight_limit", "gauge", "Most mails that may be.", figures["in_flight_limit"]),
        _one("mqcore_message_memory_bytes", "gauge", "Octets of these mails in memory.", figures["message_memory"]),
    ]


_REPLIES = {"connect": 220, "secure": 220, "authenticate": 235, "mailfrom": 250, "rcptto": 250, "message": 250}
"""What says yes at each stage."""


def _smtp(figures: Mapping[str, Any]) -> list[Family]:
    smtp = figures.get("smtp")
    if smtp is None:
        return []
    replies = [(label(stage=stage, code=_REPLIES[stage]), count) for stage, count in smtp["accepted"].items()]
    replies += [(label(stage=stage, code=code), count) for stage, code, count in figures["refusals"]]
    not_after = figures.get("certificate_not_after")
    return [
        _one("mqcore_smtp_connections_open", "gauge", "Clients that are connected.", smtp["connections_open"]),
        _one("mqcore_smtp_connections", "counter", "Clients that were let in.", smtp["connections"]),
        _by("mqcore_smtp_connections_refused", "counter", "Clients that were not let in, by why.", "reason", smtp["refused"]),
        _many("mqcore_smtp_replies", "counter", "Replies that said yes or no to a stage of a transaction.", replies),
        _by("mqcore_smtp_auth", "counter", "Logins.", "result", smtp["logins"]),
        _many(
            "mqcore_smtp_tls",
            "counter",
            "Handshakes of TLS.",
            ((label(version=version, result=result), count) for version, result, count in smtp["handshakes"]),
        ),
        _histogram("mqcore_smtp_transaction_seconds", "From MAIL to the reply to the message.", smtp["transactions"]),
        _one("mqcore_tls_certificate_not_after_seconds", "gauge", "When our certificate ends, since unix epoch.", not_after),
    ]


def _milter(figures: Mapping[str, Any]) -> list[Family]:
    milter = figures.get("milter")
    if milter is None:
        return []
    return [
        _one("mqcore_milter_connections_open", "gauge", "Sessions of mail servers that ask.", milter["connections_open"]),
        _one("mqcore_milter_connections", "counter", "Connections of mail servers.", milter["connections"]),
        _one(
            "mqcore_milter_unsayable",
            "counter",
            "Messages that were put off, as no answer can say what plugins made of them.",
            figures.get("milter_unsayable"),
        ),
    ]


def _sinks(figures: Mapping[str, Any]) -> list[Family]:
    out = figures.get("smtp_out")
    found = [
        _histogram("mqcore_sink_commit_seconds", "How long the sink took for a group of mails.", figures["commit_seconds"]),
        _histogram("mqcore_sink_group_mails", "Mails that were in one.", figures["group_mails"]),
    ]
    if out is not None:
        replies = ((label(code="none" if code is None else code), count) for code, count in out["replies"].items())
        found.append(_one("mqcore_smtp_out_connections", "gauge", "Connections to the next server.", out["connections"]))
        found.append(_many("mqcore_smtp_out_replies", "counter", "What it said to recipients; none: it did not.", replies))
    return found


def _amqp(figures: Mapping[str, Any]) -> list[Family]:
    """Of source and sink together."""
    sides = [figures[side] for side in ("amqp_in", "amqp_out") if side in figures]
    if not sides:
        return []
    total = {name: sum(side[name] for side in sides) for name in ("connections", "reconnects", "unconfirmed")}
    confirms: Counter[str] = Counter()
    for side in sides:
        confirms.update(side["confirms"])
    found = [
        _one("mqcore_amqp_connections", "gauge", "Connections to brokers.", total["connections"]),
        _one("mqcore_amqp_reconnects", "counter", "Times that one was made again.", total["reconnects"]),
        _by("mqcore_amqp_confirms", "counter", "What became of messages.", "result", confirms),
        _one("mqcore_amqp_unconfirmed", "gauge", "Messages that the broker has not confirmed.", total["unconfirmed"]),
        _one("mqcore_amqp_blocked", "gauge", "1 while a broker takes nothing.", int(any(side["blocked"] for side in sides))),
    ]
    if "amqp_in" in figures:
        read = figures["amqp_in"]
        found.append(
            _by(
                "mqcore_amqp_deliveries",
                "counter",
                "Messages that came from the queue, by whether somebody had them before.",
                "redelivered",
                read["deliveries"],
            )
        )
        found.append(_one("mqcore_amqp_acks", "counter", "Messages that were acknowledged.", read["acks"]))
    return found


def _loop(loop: Mapping[str, Any] | None, stats: Sequence[HookStats], labels: Labels) -> list[Family]:
    """Who may keep the loop has a series from the beginning: what a counter begins with, Prometheus takes for no increase."""
    if loop is None:
        return []
    labels.take(stats)
    blocked = {(plugin, hook): times for plugin, hook, times in loop["blocked"]}
    callers = labels.callers | {one: label(plugin=one[0], hook=one[1]) for one in blocked if one not in labels.callers}
    return [
        _histogram("mqcore_loop_lag_seconds", "How long turns of the loop took, for which all else waited.", loop["lag"]),
        Family(
            "mqcore_loop_blocked",
            "counter",
            "Times that the loop was kept for longer than the watchdog's limit, by whom. No hook: a timer or watcher of the "
            "plugin; no plugin: the end of a step (done), a reload, or neither.",
            list(callers.values()),
            [blocked.get(caller, 0) for caller in callers],
        ),
    ]


def _server(figures: Mapping[str, Any]) -> list[Family]:
    reloads = figures["reloads"]
    results = {"ok": reloads["succeeded"], "failed": reloads["failed"]}
    return [
        _by("mqcore_reloads", "counter", "Reloads.", "result", results),
        _one("mqcore_last_reload_seconds", "gauge", "When the last reload succeeded, since unix epoch.", reloads["last"]),
        _by(
            "mqcore_log_suppressed", "counter", "Lines of the log that were not written.", "logger", figures["log_suppressed"]
        ),
        _one("mqcore_ready", "gauge", "1 while mail is taken, 0 when draining.", int(figures["ready"])),
    ]
