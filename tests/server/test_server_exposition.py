"""The text for Prometheus, as prometheus_client and promtool read it, and that it says what happened."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest
from metrics_tools import shown, value
from smtp_tools import ALL, EHLO, MAIL, RCPT, TEXT, Holds, certificate, plugin, run

import mqcore
from mqcore.server.exposition import OPENMETRICS, Exposition, Family, label


def check(text: bytes) -> None:
    """By Prometheus's own tool."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def hook(context, message, *arguments):
    if arguments[:1] == ("nobody@example.org",):
        message.reject(550, "5.1.1 nobody")
    return False


@run
async def test_what_a_scrape_says():
    holder = Holds("message")
    plugins = {"10-hold": holder, 'odd"\\%s{}': plugin(rcptto=hook, authenticate=lambda *_: False)}
    async with shown(plugins, auth_without_tls=True) as it:
        client = await it.it.greeted()
        assert (await client.ask(b"AUTH PLAIN AHgAeQ==\r\n"))[:3] == "535"
        replies = [MAIL, b"RCPT TO:<nobody@example.org>\r\n", RCPT, b"DATA\r\n"]
        assert [(await client.ask(each))[:3] for each in replies] == ["250", "550", "250", "354"]
        client.send(TEXT + b".\r\n")
        await it.it.until(lambda: holder.held)
        series = await it.series()
        message = {"plugin": "10-hold", "hook": "mq_smtp_in_message"}
        assert value(series, "mqcore_plugin_held", **message) == 1
        assert value(series, "mqcore_plugin_held_oldest_seconds", **message) > 0
        assert value(series, "mqcore_steps_held") == 1
        assert value(series, "mqcore_in_flight") == 1
        assert value(series, "mqcore_message_memory_bytes") > 0
        holder.release()
        assert (await client.reply())[:3] == "250"
        series = await it.series()
        assert value(series, "mqcore_plugin_hold_seconds_count", **message) == 1
        assert value(series, "mqcore_plugin_hold_seconds_bucket", le="+Inf", **message) == 1
        assert value(series, "mqcore_plugin_held", **message) == 0
        assert ("mqcore_plugin_held_oldest_seconds", frozenset(message.items())) not in series
        assert value(series, "mqcore_plugin_give_backs_total", verdict="continue", **message) == 1
        assert value(series, "mqcore_plugin_calls_total", plugin='odd"\\%s{}', hook="mq_smtp_in_rcptto") == 2
        steps = [number for (name, _), number in series.items() if name == "mqcore_steps_total"]
        assert value(series, "mqcore_steps_entered_total") == sum(steps)
        assert value(series, "mqcore_mails_total", result="stored") == 1
        assert value(series, "mqcore_mails_read_total") == 1
        assert value(series, "mqcore_mail_bytes_total", direction="in") == len(it.it.sink.mails[0].mime)
        assert value(series, "mqcore_mail_bytes_total", direction="out") == len(it.it.sink.mails[0].mime)
        for stage, code, count in (("connect", 220, 1), ("mailfrom", 250, 1), ("rcptto", 250, 1), ("rcptto", 550, 1),
                                   ("message", 250, 1), ("authenticate", 535, 1)):  # fmt: skip
            assert value(series, "mqcore_smtp_replies_total", stage=stage, code=str(code)) == count
        assert value(series, "mqcore_smtp_auth_total", result="refused") == 1
        assert value(series, "mqcore_smtp_connections_total") == value(series, "mqcore_smtp_connections_open") == 1
        assert value(series, "mqcore_smtp_transaction_seconds_count") == 1
        assert value(series, "mqcore_sink_commit_seconds_count") == value(series, "mqcore_sink_group_mails_sum") == 1
        for path in ("text/plain", OPENMETRICS):
            text = (await it.get("/metrics", Accept=path)).body
            assert text.endswith(b"\n")
        await asyncio.to_thread(check, (await it.get("/metrics")).body)


@run
async def test_why_steps_failed():
    def fails(context, message):
        raise ValueError("no")

    def again(context, message):
        return mqcore.RETRY

    def forgets(context, message):
        return True

    async with shown({"a": plugin(connect=fails), "b": plugin(mailfrom=lambda c, m, a: mqcore.RETRY)}) as it:
        client = await it.it.connect()
        assert (await client.reply())[:3] == "421"
        series = await it.series()
        where = {"plugin": "a", "hook": "mq_smtp_in_connect"}
        assert value(series, "mqcore_plugin_failures_total", reason="error", **where) == 1
        assert value(series, "mqcore_smtp_connections_refused_total", reason="plugin") == 1
    async with shown({"b": plugin(mailfrom=lambda c, m, a: mqcore.RETRY)}) as it:
        client = await it.it.greeted()
        assert (await client.ask(MAIL))[:3] == "451"
        where = {"plugin": "b", "hook": "mq_smtp_in_mailfrom"}
        series = await it.series()
        assert value(series, "mqcore_plugin_failures_total", reason="retry_limit", **where) == 1
        assert value(series, "mqcore_plugin_failures_total", reason="error", **where) == 0


@run
async def test_connections_that_are_refused():
    async with shown(max_connections=1) as it:
        await it.it.greeted()
        assert (await (await it.it.connect()).reply())[:3] == "421"
        series = await it.series()
        assert value(series, "mqcore_smtp_connections_refused_total", reason="too_many") == 1
        assert value(series, "mqcore_smtp_replies_total", stage="connect", code="421") == 1


@run
async def test_tls_and_the_end_of_the_certificate():
    async with shown(tls="starttls") as it:
        client = await it.it.greeted()
        await client.ask(b"STARTTLS\r\n")
        await client.start_tls(certificate().client)
        assert (await client.ask(EHLO))[:4] == "250-"
        series = await it.series()
        assert value(series, "mqcore_smtp_tls_total", version="TLSv1.3", result="ok") == 1
        assert value(series, "mqcore_tls_certificate_not_after_seconds") > 1e9
    async with shown(tls="implicit") as it:
        client = await it.it.connect(ssl=certificate().client, server_hostname="localhost")
        assert (await client.reply())[:4] == "220 "
        wrong = await it.it.connect()
        wrong.send(b"this is no TLS\r\n" * 9)
        assert await wrong.is_closed()
        series = await it.series()
        assert value(series, "mqcore_smtp_tls_total", version="TLSv1.3", result="ok") == 1
        assert value(series, "mqcore_smtp_tls_total", version="none", result="failed") == 1


@run
async def test_nothing_that_a_client_chooses_is_a_label():
    async with shown({"a": plugin(rcptto=hook)}) as it:
        before = (await it.series()).keys()
        client = await it.it.connect()
        client.send(ALL.replace(b"client.example", b"SECRET.example").replace(b"a@example", b"SECRET@example"))
        await it.it.until(lambda: it.it.sink.mails)
        client.send(b"RCPT TO:<SECRET@SECRET>\r\nSECRET\r\n")
        await it.it.until(lambda: it.it.gateway.refusals.counts)
        after = await it.series()
        assert len(after) < len(before) + 30
        assert b"SECRET" not in (await it.get("/metrics")).body


def test_labels_and_templates_are_escaped():
    written = label(plugin='a"\\\n%d', code=250)
    assert written == '{plugin="a\\"\\\\\\n%d",code="250"}'
    exposition = Exposition(OPENMETRICS)
    for number in (1, 2.5):
        text = exposition.write([Family("x", "counter", "Of 100 %.", [written], [number])]).decode()
        assert text == f"# HELP x Of 100 %.\n# TYPE x counter\nx_total{written} {number}\n# EOF\n"
    assert label(plugin="\udcff") == '{plugin="?"}'
