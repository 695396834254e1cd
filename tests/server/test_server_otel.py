"""`--trace`: transactions as spans of OpenTelemetry, by the SDK's own exporter that keeps them in memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from mail_tools import write_mbox
from server_tools import steered
from smtp_tools import MAIL, RCPT, TEXT, ListSink, plugin, run

import mqcore
from mqcore.mail import Gateway, MboxSource

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra [otel]")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from mqcore.server import otel  # noqa: E402


def waits(context, message):
    context.start_timer(0.002, context.continue_, message)
    return mqcore.HOLD


def fails(context, message):
    raise ValueError("no")


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@run
async def test_one_span_for_a_transaction_and_a_child_for_each_hold(tmp_path, provider, exporter):
    plugins = {"10-go": plugin(rcptto=lambda *_: False), "20-wait": plugin(message=waits)}
    async with steered(tmp_path, plugins) as at:
        with otel.traced(at.it.gateway, provider, 1.0):
            client = await at.it.opened()
            assert await client.asks(TEXT + b".\r\n", 1) == ["250 2.6.0"]
        hold, span = exporter.get_finished_spans()
    assert (span.name, span.kind, span.parent) == ("mail transaction", SpanKind.SERVER, None)
    assert (hold.name, hold.parent.span_id) == ("hold 20-wait", span.context.span_id)
    assert span.attributes["client.address"] == span.attributes["network.peer.address"] == "127.0.0.1"
    assert span.attributes["network.protocol.name"] == "smtp" and span.attributes["tls.established"] is False
    assert span.attributes["mqcore.reply.code"] == 250 and span.attributes["mqcore.verdict"] == "accepted"
    events = [(event.name, event.attributes["mqcore.plugin"], event.attributes["mqcore.verdict"]) for event in span.events]
    assert events == [("mqcore.verdict", "10-go", "CONTINUE"), ("mqcore.verdict", "20-wait", "CONTINUE")]
    assert hold.attributes["mqcore.hook"] == "mq_smtp_in_message"
    assert span.start_time <= hold.start_time <= hold.end_time <= span.end_time
    assert hold.end_time - hold.start_time >= 2_000_000
    assert span.status.status_code is hold.status.status_code is StatusCode.UNSET
    said = str([dict(each.attributes) for each in (span, hold)] + [dict(event.attributes) for event in span.events])
    for secret in ("example.org", "hello"):  # who writes to whom, and what
        assert secret not in said


@run
async def test_what_failed(tmp_path, provider, exporter):
    async with steered(tmp_path, {"10-bad": plugin(message=fails)}) as at:
        with otel.traced(at.it.gateway, provider, 1.0):
            client = await at.it.opened()
            assert await client.asks(TEXT + b".\r\n", 1) == ["451 4.3.0"]
        (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].attributes["error.type"] == "ValueError"
    assert "no" not in span.events[0].attributes.values()


@run
async def test_the_ratio_is_drawn_before_anything_else(tmp_path, provider, exporter, monkeypatch):
    drawn = iter([0.5, 0.1, 0.3, 0.05])
    monkeypatch.setattr(random, "random", lambda: next(drawn))
    async with steered(tmp_path) as at:
        with otel.traced(at.it.gateway, provider, 0.2):
            client = await at.it.greeted()
            for _ in range(4):
                await client.asks(MAIL + RCPT + b"DATA\r\n", 3)
                await client.asks(TEXT + b".\r\n", 1)
        assert len(exporter.get_finished_spans()) == 2
        assert at.it.gateway.tracers is None


@run
async def test_mails_from_a_mailbox(tmp_path, provider, exporter):
    with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
        gateway = Gateway(dispatcher, MboxSource(str(write_mbox(tmp_path / "box", 3))), ListSink())
        with otel.traced(gateway, provider, 1.0):
            await gateway.run()
    spans = exporter.get_finished_spans()
    assert [(span.kind, span.attributes["mqcore.verdict"]) for span in spans] == [(SpanKind.INTERNAL, "accepted")] * 3


def command(folder, *arguments, **environment):
    write_mbox(folder / "box", 2)
    places = ["--from", f"mbox:{folder / 'box'}", "--to", "null:"]
    line = [sys.executable, "-W", "error", "-m", "mqcore", "run", *places, *arguments]
    return subprocess.run(line, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_the_command_sends_by_what_the_variables_say(tmp_path):
    result = command(tmp_path, "--trace", "1", OTEL_TRACES_EXPORTER="console")
    assert result.returncode == 0
    assert result.stderr.count('"name": "mail transaction"') == 2 and '"service.name": "mqcore"' in result.stderr
    result = command(tmp_path, "--trace", "1", OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="mx")
    assert '"service.name": "mx"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--trace", "2"], {}, "argument --trace: '2' is no number from 0 to 1"),
        (["--trace", "1"], {"OTEL_TRACES_EXPORTER": "no-such"}, "--trace: the exporter 'no-such' (OTEL_TRACES_EXPORTER)"),
        (["--trace", "1"], {"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "the protocol for OTLP is grpc or http/protobuf"),
    ],
)
def test_what_is_wrong(tmp_path, arguments, environment, said):
    result = command(tmp_path, *arguments, **environment)
    assert result.returncode == 2 and said in result.stderr


def test_without_opentelemetry(tmp_path):
    program = "import sys; sys.modules['opentelemetry'] = None; from mqcore.cli import main; sys.exit(main())"
    write_mbox(tmp_path / "box", 1)
    line = [sys.executable, "-c", program, "run", "--from", f"mbox:{tmp_path / 'box'}", "--to", "null:"]
    result = subprocess.run([*line, "--trace", "0.5"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "--trace needs OpenTelemetry" in result.stderr
    assert "pip install 'mqcore[otel]'" in result.stderr
    assert subprocess.run(line, capture_output=True, text=True, timeout=60).returncode == 0  # what is off needs nothing
