"""What the figures are made of: histograms, the end of a certificate, the process, the last five minutes."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from metrics_tools import shown, value
from smtp_tools import ALL, Holds, run

from mqcore.mail import refusals
from mqcore.mail._histogram import Histogram
from mqcore.mail.smtp.certificate import not_after, read_not_after
from mqcore.server import ReloadError, history
from mqcore.server.exposition import Labels, families
from mqcore.server.figures import boot_time, plain_lag, process_figures
from mqcore.stats import HOLD_TIMES


@pytest.mark.parametrize(
    ("number", "place"),
    [(0, 0), (0.5, 0), (1, 0), (1.001, 1), (2, 1), (2.5, 2), (4, 2), (5, 3), (32768, 15), (32768.5, 16), (1e300, 16), (-1, 0)],
)
def test_where_a_number_is_counted(number, place):
    histogram = Histogram(1)
    histogram.add(number)
    assert histogram.counts == tuple(int(each == place) for each in range(17))
    assert histogram.sum == number
    assert histogram.bounds == tuple(1000 * bound for bound in HOLD_TIMES)


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_bound_is_the_most_that_is_counted_there(numbers):
    histogram = Histogram(1e-3)
    for number in numbers:
        histogram.add(number)
    for place, bound in enumerate(histogram.bounds):
        assert sum(histogram.counts[: place + 1]) == sum(number <= bound * (1 + 1e-9) for number in numbers)
    assert sum(histogram.counts) == len(numbers)


@pytest.mark.parametrize("year", [2027, 2049, 2050, 2120])
@pytest.mark.parametrize("kind", list(trustme.KeyType))
def test_the_end_of_a_certificate(tmp_path, year, kind):
    end = datetime.datetime(year, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    made = trustme.CA(key_type=kind).issue_cert("mx.example.org", not_after=end, key_type=kind)
    file = tmp_path / "both.pem"
    made.private_key_and_cert_chain_pem.write_to_path(file)
    first = x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes())
    assert read_not_after(str(file)) == first.not_valid_after_utc.timestamp() == end.timestamp()


def test_what_is_no_certificate(tmp_path):
    file = tmp_path / "x.pem"
    assert read_not_after(None) is read_not_after(str(file)) is None
    for text in ("!", "", "MAA="):
        file.write_text(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----")
        assert read_not_after(str(file)) is None


@given(st.binary(max_size=60))
def test_whatever_bytes_end_in_an_error_that_is_known(text):
    with pytest.raises((ValueError, IndexError, StopIteration)):
        not_after(text)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc, as Linux has it")
def test_the_process():
    with open("/proc/stat") as stat:
        boot = next(float(line.split()[1]) for line in stat if line.startswith("btime "))
    assert abs(boot_time() - boot) < 2
    figures = process_figures(boot)
    assert figures["threads"] >= 1
    assert 1 << 20 < figures["resident_memory_bytes"] < figures["virtual_memory_bytes"]
    assert boot < figures["start_time_seconds"] < time.time() + 2  # btime is in whole seconds
    if "open_fds" in figures:  # Linux 6.2 and later
        before = figures["open_fds"]
        with open(os.devnull):
            assert process_figures(boot)["open_fds"] == before + 1


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc, as Linux has it")
def test_the_process_where_nothing_is_seen_of_others(monkeypatch):
    """As in a service with ProcSubset=pid."""
    read_text = Path.read_text

    def only_pid(self, *options):
        if self == Path("/proc/stat"):
            raise FileNotFoundError(self)
        return read_text(self, *options)

    monkeypatch.setattr(Path, "read_text", only_pid)
    assert time.time() - 3600 < process_figures(boot_time())["start_time_seconds"] < time.time() + 2


def test_lag_and_who_blocked_the_loop():
    assert plain_lag(None) is None
    blocked = [SimpleNamespace(plugin="10-slow", hook="mq_step", times=2), SimpleNamespace(plugin=None, hook=None, times=1)]
    lag = SimpleNamespace(turns=7, seconds=1.5, longest=1.0, buckets=((0.001, 4), (0.01, 2)), blocked=blocked)
    found = plain_lag(lag)
    assert found["lag"] == {"bounds": [0.001, 0.01], "counts": [4, 2, 1], "sum": 1.5}
    assert found["blocked"] == [["10-slow", "mq_step", 2], ["", "", 1]]


@run
async def test_a_loop_that_a_watchdog_looks_at():
    async with shown() as it:
        await it.it.greeted()
        figures = it.http._shown._figures.collect()
        assert figures["loop"] is None
        figures["loop"] = {"lag": {"bounds": [0.5], "counts": [1, 2], "sum": 9.0}, "longest": 8.0, "blocked": [["a", "b", 3]]}
        found = {family.name: family for family in families(figures, Labels())}
        assert found["mqcore_loop_lag_seconds"].numbers == [1, 3, 9.0, 3]
        assert dict(zip(found["mqcore_loop_blocked"].labels, found["mqcore_loop_blocked"].numbers, strict=True)) == {
            '{plugin="",hook="done"}': 0,
            '{plugin="",hook="reload"}': 0,
            '{plugin="",hook=""}': 0,
            '{plugin="a",hook="b"}': 3,
        }


@run
async def test_what_is_counted_is_there_from_the_beginning():
    """Prometheus takes what a counter begins with for no increase: so an alert would miss the first."""
    async with shown({"10-a": Holds("message")}, watchdog=60) as it:
        series = await it.series()
        for plugin, hook in (("10-a", "mq_smtp_in_message"), ("10-a", ""), ("", "done"), ("", "reload"), ("", "")):
            assert value(series, "mqcore_loop_blocked_total", plugin=plugin, hook=hook) == 0
        for reason in ("too_many", "too_many_from_network", "plugin", "proxy", "shutting_down"):
            assert value(series, "mqcore_smtp_connections_refused_total", reason=reason) == 0
        for result in ("ok", "refused", "failed"):
            assert value(series, "mqcore_smtp_auth_total", result=result) == 0


@run
async def test_refusals_beyond_those_that_are_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO, refusals.log.name)
    monkeypatch.setattr(refusals, "MOST_LINES", 2)
    async with shown() as it:
        for number in range(5):
            it.it.gateway.refusals.note("connect", 421, f"{number}")
        assert value(await it.series(), "mqcore_log_suppressed_total", logger=refusals.log.name) == 3


@run
async def test_lines_that_were_not_written():
    handler = logging.NullHandler()
    handler.suppressed = Counter({"mqcore.plugins.a": 3})
    logging.getLogger().addHandler(handler)
    try:
        async with shown() as it:
            assert value(await it.series(), "mqcore_log_suppressed_total", logger="mqcore.plugins.a") == 3
    finally:
        logging.getLogger().removeHandler(handler)


@run
async def test_the_last_five_minutes(monkeypatch):
    monkeypatch.setattr(history, "PERIOD", 0.001)
    async with shown() as it:
        points = it.http._history.points
        client = await it.it.connect()
        client.send(ALL)
        await it.it.until(lambda: len(points) == history.LENGTH and points[-1].mails == 1)
        first = points[0]
        await it.it.until(lambda: points[0] != first)
        assert len(points) == history.LENGTH
        assert sorted(point.time for point in points) == [point.time for point in points]
        assert all(point.lag >= 0 for point in points)


@run
async def test_why_a_reload_failed_is_not_for_everybody():
    def part():
        raise ValueError("password = 'secret'")

    async with shown() as it:
        it.http._shown._server.parts.append(part)
        with pytest.raises(ReloadError, match="secret"):
            it.http._shown._server.reload()
        for path in ("/status.json", "/metrics"):
            assert b"secret" not in (await it.get(path)).body
        assert value(await it.series(), "mqcore_reloads_total", result="failed") == 1


@run
async def test_reloads_are_counted():
    async with shown() as it:
        it.http._shown._server.reload()
        series = await it.series()
        assert value(series, "mqcore_reloads_total", result="ok") == 1
        assert value(series, "mqcore_last_reload_seconds") > 1e9
